# SPDX-License-Identifier: MIT
# What an interactive zsh reads in a session: the user's own file, and the prompt.
ZDOTDIR=$TSMFS_ZDOTDIR
unset TSMFS_ZDOTDIR
[[ ! -r $ZDOTDIR/.zshrc ]] || . "$ZDOTDIR/.zshrc"
# The stand-ins for modprobe and the others stay in front of what that file has added.
[[ ${PATH%%:*} == $_tsmfs_path ]] || PATH=$_tsmfs_path:$PATH
unset _tsmfs_path
PROMPT="(tsmfs $TSMFS_SESSION) $PROMPT"
