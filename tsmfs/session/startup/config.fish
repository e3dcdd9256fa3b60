# SPDX-License-Identifier: MIT
# What an interactive fish reads in a session after the user's own files: the prompt.
functions -q tsmfs_own_prompt; or functions -c fish_prompt tsmfs_own_prompt
function fish_prompt
    echo -n "(tsmfs $TSMFS_SESSION) "
    tsmfs_own_prompt
end
