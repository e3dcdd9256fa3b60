# SPDX-License-Identifier: MIT
# What zsh reads first in a session: the user's own file.
_tsmfs_path=${PATH%%:*}
[[ ! -r $TSMFS_ZDOTDIR/.zshenv ]] || . "$TSMFS_ZDOTDIR/.zshenv"
