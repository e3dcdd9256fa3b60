#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# TSM modules through their life, by shell alone: devsec.sh [SYSFS_DIR]
#
# Both load orders: connect every device, connect and bind one, read its evidence by netlink, lock
# and accept one, and unload everything while connected. Prints TAP; ends with 0 when every step
# passed. The modules are unloaded first if they are loaded, and are not loaded afterwards.
#
# On the machine "server" they are those of the software TSM, and the devices are the machine's own,
# which have keys; on any other the sample modules, with the devices of devsec_bus. TSM=sample or
# TSM=soft chooses.
#
# Without an argument the machine is the one on /sys, as in `tsmfs exec -- devsec.sh`. Then all that
# is used has its usual place: modprobe in PATH, /proc/iomem, NETLINK_GENERIC.
set -u
export LC_ALL=C

sysfs=${1-/sys}
sysfs=${sysfs%/}
if [[ $# -gt 1 || ! -d $sysfs ]]; then
    echo "usage: ${0##*/} [SYSFS_DIR]" >&2
    exit 2
fi
if [[ ! -d $sysfs/kernel/tsmfs ]]; then
    echo "${0##*/}: no emulated machine on $sysfs; try: tsmfs exec -- $0" >&2
    exit 2
fi
here=$(readlink -f "${BASH_SOURCE[0]}")
root=${here%/tests/*}
if [[ -x $root/.venv/bin/python ]]; then
    python=$root/.venv/bin/python
else
    python=python3
fi
export TSMFS_SYSFS=$sysfs
if [[ $sysfs == /sys ]]; then
    iomem=/proc/iomem
    modprobe=modprobe
    lsmod=lsmod
else
    iomem=$sysfs/kernel/tsmfs/iomem
    modprobe=$root/bin/modprobe
    lsmod=$root/bin/lsmod
fi

devices=$sysfs/bus/pci/devices
if [[ $(cat "$sysfs/kernel/tsmfs/name") == server ]]; then TSM=${TSM-soft}; fi
case ${TSM-sample} in
    sample)
        modules=(devsec_bus devsec_link_tsm devsec_tsm)
        link_module=devsec_link_tsm
        endpoints=(10000:01:00.0 10001:03:00.0)
        function1=10000:01:00.1
        streams=4
        ;;
    soft)
        modules=(soft_link_tsm soft_devsec_tsm)
        link_module=soft_link_tsm
        endpoints=(0000:01:00.0 0000:81:00.0)
        # A virtual function of the first.
        function1=0000:01:00.1
        streams=8
        ;;
    *)
        echo "${0##*/}: TSM is neither sample nor soft" >&2
        exit 2
        ;;
esac
TSM=${TSM-sample}
function0=${endpoints[0]}

count=0
failures=0

# --- Reporting ---------------------------------------------------------------------------------

pass() { # TEXT
    echo "ok $((++count)) - $1"
}

fail() { # TEXT DIAGNOSTIC...
    echo "not ok $((++count)) - $1"
    shift
    local line
    for line in "$@"; do echo "# $line"; done
    failures=$((failures + 1))
}

equal() { # TEXT EXPECTED GOT
    if [[ $2 == "$3" ]]; then
        pass "$1"
    else
        fail "$1" "expected '$2'" "got      '$3'"
    fi
}

# --- Steps -------------------------------------------------------------------------------------

# Writes VALUE to FILE; sets error to what the shell said of it, the errno's text alone.
write() { # FILE VALUE
    if error=$({ echo "$2" >"$1"; } 2>&1); then
        error=
        return 0
    fi
    error=${error##*: }
    return 1
}

accepts() { # TEXT FILE VALUE
    if write "$2" "$3"; then
        pass "$1"
    else
        fail "$1" "echo $3 > $2" "expected no error" "got      '$error'"
    fi
}

refuses() { # TEXT FILE VALUE ERROR
    if write "$2" "$3"; then
        fail "$1" "echo $3 > $2" "expected '$4'" "got      no error"
    elif [[ $error == "$4" ]]; then
        pass "$1: $4"
    else
        fail "$1" "echo $3 > $2" "expected '$4'" "got      '$error'"
    fi
}

reads() { # TEXT FILE VALUE
    local got
    if got=$(cat "$2" 2>&1); then
        equal "$1" "$3" "$got"
    else
        fail "$1" "cat $2" "expected '$3'" "got      '$got'"
    fi
}

present() { # TEXT PATH...
    local text=$1 missing=() path
    shift
    for path in "$@"; do [[ -e $path ]] || missing+=("missing $path"); done
    if [[ ${#missing[@]} -eq 0 ]]; then pass "$text"; else fail "$text" "${missing[@]}"; fi
}

absent() { # TEXT PATH...
    local text=$1 there=() path
    shift
    for path in "$@"; do [[ ! -e $path && ! -L $path ]] || there+=("still there: $path"); done
    if [[ ${#there[@]} -eq 0 ]]; then pass "$text"; else fail "$text" "${there[@]}"; fi
}

resolves() { # TEXT LINK PLACE
    if [[ -e $2 && -e $3 ]]; then
        equal "$1" "$(readlink -f "$3")" "$(readlink -f "$2")"
    else
        present "$1" "$2" "$3"
    fi
}

modules() { # TEXT MODPROBE_ARGUMENT...
    local text=$1 said
    shift
    if said=$("$modprobe" "$@" 2>&1); then
        pass "$text"
    else
        fail "$text" "modprobe $*" "expected no error" "got      '$said'"
        return 1
    fi
}

# The command of this checkout, or the one that is installed.
tsmfs() {
    if [[ -x $root/.venv/bin/python ]] || ! type -P tsmfs >/dev/null; then
        "$root/bin/tsmfs" "$@"
    else
        command tsmfs "$@"
    fi
}

listed() { # MODULE...
    local newest_first=() found=() module
    for module in "$@"; do newest_first=("$module" "${newest_first[@]}"); done
    while read -r module _; do
        case $module in
            devsec_common | soft_tsm) ;;
            devsec_* | soft_*) found+=("$module") ;;
        esac
    done <<<"$("$lsmod")"
    equal "lsmod lists them, the newest first" "${newest_first[*]}" "${found[*]}"
}

unload_everything() {
    local module
    for module in devsec_pci devsec_link_tsm devsec_tsm devsec_bus soft_link_tsm soft_devsec_tsm; do
        "$modprobe" -r -q "$module"
    done
}

# --- Looking things up -------------------------------------------------------------------------

# Sets link_tsm and devsec_tsm to the names of the two TSMs, empty for one that is not there.
find_tsms() {
    local directory
    link_tsm='' devsec_tsm=''
    for directory in "$sysfs"/class/tsm/tsm*; do
        [[ -e $directory/pci_mode ]] || continue
        case $(cat "$directory/pci_mode") in
            link) link_tsm=${directory##*/} ;;
            devsec) devsec_tsm=${directory##*/} ;;
        esac
    done
}

# Prints the directory of the host bridge above an endpoint: the root port is in between.
host_bridge() { # FUNCTION
    local path
    path=$(readlink -f "$devices/$1")
    echo "${path%/*/*}"
}

# Prints the address range of a BAR as iomem has it.
bar() { # FUNCTION INDEX
    local first last
    read -r first last _ <<<"$(sed -n "$(($2 + 1))p" "$devices/$1/resource")"
    printf '%08x-%08x\n' "$first" "$last"
}

# Prints the address ranges of the lines in iomem with that name.
ranges() { # NAME
    local line
    while read -r line; do
        [[ ${line#* : } == "$1" ]] && echo "${line%% : *}"
    done <<<"$(cat "$iomem")"
    return 0
}

# Whether the range is in iomem under that name.
has_range() { # NAME RANGE
    local range
    while read -r range; do
        [[ -n $range && $range == "$2" ]] && return 0
    done <<<"$(ranges "$1")"
    return 1
}

# --- The flow ----------------------------------------------------------------------------------

prepare() { # MODULE...
    local module endpoint
    for module in "$@"; do
        modules "load $module" "$module" || return 1
    done
    listed "$@"
    find_tsms
    equal "one TSM has pci_mode link, another devsec" "tsm tsm" \
        "${link_tsm%%[0-9]*} ${devsec_tsm%%[0-9]*}"
    [[ -n $link_tsm && -n $devsec_tsm ]] || return 1
    if [[ $TSM == sample ]]; then fill_blobs; fi
    for endpoint in "${endpoints[@]}"; do
        present "$endpoint has tsm/" "$devices/$endpoint/tsm"
    done
}

# Gives the sample devices what they present as evidence.
fill_blobs() {
    local file blob got
    blobs=
    printf -v blob '%4096s' ''
    for file in certs transcript; do
        blob=${blob//?/${file:0:1}}
        blobs+=$blob
        # One byte at offset 0 empties what an earlier run may have left.
        echo -n x >"$sysfs/class/tsm/$link_tsm/device/$file"
        echo -n "$blob" >"$sysfs/class/tsm/$link_tsm/device/$file"
        got=$(cat "$sysfs/class/tsm/$devsec_tsm/device/$file")
        equal "4 KiB of $file, written by way of one TSM, are read by way of the other" \
            "4096 bytes of ${file:0:1}" "${#got} bytes of ${got:0:1}${got//${file:0:1}/}"
    done
}

connect_all() {
    local endpoint bridge
    for endpoint in "${endpoints[@]}"; do
        accepts "connect $endpoint" "$devices/$endpoint/tsm/connect" "$link_tsm"
    done
    for endpoint in "${endpoints[@]}"; do
        bridge=$(host_bridge "$endpoint")
        resolves "${bridge##*/}/stream0.0.0 is $endpoint" \
            "$bridge/stream0.0.0" "$devices/$endpoint"
        resolves "$link_tsm/${bridge##*/}/stream0.0.0 is $endpoint" \
            "$sysfs/class/tsm/$link_tsm/${bridge##*/}/stream0.0.0" "$devices/$endpoint"
    done
    for endpoint in "${endpoints[@]}"; do
        accepts "disconnect $endpoint" "$devices/$endpoint/tsm/disconnect" "$link_tsm"
    done
    for endpoint in "${endpoints[@]}"; do
        bridge=$(host_bridge "$endpoint")
        absent "no stream is left in ${bridge##*/}" \
            "$bridge/stream0.0.0" "$sysfs/class/tsm/$link_tsm/${bridge##*/}"
    done
}

disconnected() { # WHEN
    local tsm=$devices/$function0/tsm file
    reads "$1: $streams streams are available" \
        "$(host_bridge "$function0")/available_secure_streams" "$streams"
    for file in connect dsm bound; do
        reads "$1: $file of $function0 is empty" "$tsm/$file" ''
    done
    tsm=$devices/$function1/tsm
    absent "$1: $function1 has no files of a link TSM" \
        "$tsm/connect" "$tsm/disconnect" "$tsm/dsm" "$tsm/bound"
}

# Reads all evidence by a client, and compares it with the blobs if there are any.
evidence_by() { # CLIENT OBJECTS COMMAND...
    local client=$1 wanted=$2 directory got name full=() empty=()
    shift 2
    directory=$scratch/$client
    mkdir "$directory"
    if ! got=$("$@" "$directory" 2>&1); then
        fail "evidence by $client: read" "$*" "$got"
        return
    fi
    for name in "$directory"/*.bin; do
        name=${name##*/}
        if [[ -s $directory/$name ]]; then full+=("${name%.bin}"); else empty+=("${name%.bin}"); fi
    done
    equal "evidence by $client: 11 objects" 11 $((${#full[@]} + ${#empty[@]}))
    equal "evidence by $client: those with content" "$wanted" "${full[*]}"
    if [[ $TSM == sample ]]; then
        got=$(cat "$directory/cert0.bin" "$directory/measurements.bin")
        equal "evidence by $client: the blobs, whole" "$blobs" "$got"
    else
        equal "evidence by $client: the chain has the length that it says" \
            "$(wc -c <"$directory/cert0.bin")" "$(length_in "$directory/cert0.bin")"
    fi
    rm -r "$directory"
}

# Prints the length at the start of a certificate chain, two bytes with the low one first.
length_in() { # FILE
    local low high
    read -r low high <<<"$(od -An -tu1 -N2 "$1")"
    echo $((high << 8 | low))
}

evidence() {
    local said objects="cert0 measurements"
    if [[ $TSM == soft ]]; then objects="cert0 measurements vca"; fi
    evidence_by "the command" "$objects" tsmfs evidence read "$function0" --out
    evidence_by "a Unix socket" "$objects" "$python" "$root/tests/devsec/read_evidence.py" \
        "$(cat "$sysfs/kernel/tsmfs/netlink_socket")" "$function0"
    evidence_by "NETLINK_USERSOCK" "$objects" "$python" "$root/tests/devsec/read_evidence.py" \
        "$(cat "$sysfs/kernel/tsmfs/netlink_port")" "$function0"
    # Elsewhere than in a session that is the running kernel's.
    if [[ $sysfs == /sys ]]; then
        evidence_by "NETLINK_GENERIC" "$objects" "$python" "$root/tests/devsec/read_evidence.py" \
            kernel "$function0"
    fi
    if [[ $TSM == soft ]]; then fresh_evidence; fi
    if said=$(tsmfs evidence read "$function1" 2>&1); then
        fail "$function1 has no evidence of its own" "tsmfs evidence read $function1" "$said"
    else
        equal "$function1 has no evidence of its own" \
            "tsmfs: $function1: No such device or address: no evidence available" "$said"
    fi
}

# Has function 0 sign its measurements over a nonce, which is in the transcript then.
fresh_evidence() {
    local nonce directory=$scratch/fresh got
    nonce=$(printf '%064x' $((RANDOM << 15 | RANDOM)))
    mkdir "$directory"
    if ! got=$(tsmfs evidence read "$function0" --nonce "$nonce" --out "$directory" 2>&1); then
        fail "evidence over a nonce" "$got"
    else
        got=$(od -An -v -tx1 "$directory/measurements.bin" | tr -d ' \n')
        [[ $got == *"$nonce"* ]] && got=$nonce
        equal "evidence over a nonce has it" "$nonce" "$got"
    fi
    rm -r "$directory"
}

bind_one() {
    local tsm=$devices/$function0/tsm function
    local faux=$sysfs/bus/faux/devices/$link_module

    disconnected "before"
    accepts "connect $function0" "$tsm/connect" "$link_tsm"
    reads "$((streams - 1)) streams are available" \
        "$(host_bridge "$function0")/available_secure_streams" $((streams - 1))
    reads "connect reads the TSM" "$tsm/connect" "$link_tsm"
    refuses "a second connect" "$tsm/connect" "$link_tsm" "Device or resource busy"
    for function in "$function0" "$function1"; do
        reads "the DSM of $function is $function0" "$devices/$function/tsm/dsm" "$function0"
        reads "no TDI is bound in $function" "$devices/$function/tsm/bound" ''
    done
    evidence

    for function in "$function0" "$function1"; do
        accepts "bind $function" "$faux/tsm_bind" "$function"
        reads "$function is bound" "$devices/$function/tsm/bound" "$link_tsm"
        if [[ $TSM == soft ]]; then
            evidence_by "the command, of $function" "cert0 measurements report vca" \
                tsmfs evidence read "$function" --out
        fi
    done
    for function in "$function0" "$function1"; do
        accepts "unbind $function" "$faux/tsm_unbind" "$function"
        reads "$function is not bound" "$devices/$function/tsm/bound" ''
    done
    for function in "$function0" "$function1"; do
        accepts "bind $function again" "$faux/tsm_bind" "$function"
        reads "$function is bound again" "$devices/$function/tsm/bound" "$link_tsm"
    done
    accepts "disconnect $function0 with both functions bound" "$tsm/disconnect" "$link_tsm"
    disconnected "after"
}

accept_one() {
    local device=$devices/$function0 driver=$sysfs/bus/pci/drivers/devsec_pci bar before

    accepts "override the driver of $function0" "$device/driver_override" devsec_pci
    modules "load devsec_pci autoprobe=0" devsec_pci autoprobe=0
    absent "the driver is not attached by itself" "$device/driver"
    accepts "bind the driver" "$driver/bind" "$function0"
    resolves "the driver is devsec_pci" "$device/driver" "$driver"
    accepts "unbind the driver" "$driver/unbind" "$function0"
    absent "no driver is attached" "$device/driver"

    before=$(ranges "$function0")
    bar=$(bar "$function0" 0)
    if has_range "$function0" "$bar"; then
        pass "BAR 0 of $function0 is in iomem"
    else
        fail "BAR 0 of $function0 is in iomem" "$iomem has no line '$bar : $function0'"
    fi
    accepts "lock $function0" "$device/tsm/lock" "$devsec_tsm"
    reads "lock reads the TSM" "$device/tsm/lock" "$devsec_tsm"
    reads "it is not accepted yet" "$device/tsm/accept" 0
    accepts "accept $function0" "$device/tsm/accept" 1
    reads "accept reads 1" "$device/tsm/accept" 1
    if has_range 'PCI MMIO Encrypted' "$bar"; then
        pass "BAR 0 is listed as PCI MMIO Encrypted"
    else
        fail "BAR 0 is listed as PCI MMIO Encrypted" "expected '$bar'" \
            "got      '$(ranges 'PCI MMIO Encrypted')'"
    fi
    if [[ $TSM == soft ]]; then
        bar=$(bar "$function0" 4)
        if has_range 'PCI MMIO Encrypted' "$bar"; then
            fail "the BAR with the MSI-X table is not" "$bar is listed as PCI MMIO Encrypted"
        else
            pass "the BAR with the MSI-X table is not"
        fi
        evidence_by "the command, locked" "cert0 measurements report vca" \
            tsmfs evidence read "$function0" --out
    fi
    refuses "bind the driver to an accepted device" "$driver/bind" "$function0" "Invalid argument"
    absent "no driver is attached to it" "$device/driver"
    accepts "unlock $function0" "$device/tsm/unlock" "$devsec_tsm"
    equal "nothing is listed as PCI MMIO Encrypted" '' "$(ranges 'PCI MMIO Encrypted')"
    equal "its BARs are listed as before" "$before" "$(ranges "$function0")"
    reads "lock is empty" "$device/tsm/lock" ''
    reads "accept reads 0" "$device/tsm/accept" 0
    accepts "drop the override" "$device/driver_override" ''
    modules "unload devsec_pci" -r devsec_pci
}

surprise() { # MODULE...
    local endpoint module
    for endpoint in "${endpoints[@]}"; do
        accepts "connect $endpoint again" "$devices/$endpoint/tsm/connect" "$link_tsm"
    done
    for module in "$@"; do
        modules "unload $module while connected" -r "$module"
        absent "$module has gone" "$sysfs/module/$module"
    done
    absent "no TSM is left" "$sysfs/class/tsm/$link_tsm" "$sysfs/class/tsm/$devsec_tsm"
    if [[ $TSM == sample ]]; then
        absent "no device is left" "${endpoints[@]/#/$devices/}"
    else
        for endpoint in "${endpoints[@]}"; do
            absent "$endpoint has no tsm/ any more" "$devices/$endpoint/tsm"
        done
    fi
}

# Gives function 0 one virtual function, or none.
virtual_functions() { # NUMBER
    local device=$devices/$function0 driver=$sysfs/bus/pci/drivers/pci-pf-stub
    "$modprobe" -q pci_pf_stub
    echo pci-pf-stub >"$device/driver_override"
    echo "$function0" >"$driver/bind"
    echo "$1" >"$device/sriov_numvfs"
    echo "$function0" >"$driver/unbind"
    echo >"$device/driver_override"
}

in_order() { # MODULE...
    echo "# load order: $*"
    if prepare "$@"; then
        connect_all
        bind_one
        accept_one
        surprise "$@"
    else
        fail "the rest of this load order" "there is nothing to run it on"
    fi
    unload_everything
}

clean_up() {
    unload_everything
    if [[ $TSM == soft ]]; then virtual_functions 0; fi
    rm -rf -- "$scratch"
}

scratch=$(mktemp -d) || exit 2
trap clean_up EXIT
echo "TAP version 13"
unload_everything
if [[ $TSM == soft ]]; then virtual_functions 1; fi
in_order "${modules[@]}"
reverse=()
for module in "${modules[@]}"; do reverse=("$module" "${reverse[@]}"); done
in_order "${reverse[@]}"
echo "1..$count"
[[ $failures -eq 0 ]]
