#!/usr/bin/env bash
# Builds the agent's Debian package, and installs, upgrades, removes and purges it in a root of its own: a copy-on-write view of this
# machine, in namespaces of its own, so that nothing here changes. Needs root.
#
#   tests/deb.sh              builds the program too, with the profile `dist`
#   tests/deb.sh --no-build   packs target/release/probeops-agent as it is
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "tests/deb.sh: $*" >&2; exit 1; }
# What should be, what is, and of what.
same() { [ "$1" = "$2" ] || fail "$3: expected \`$1\`, found \`$2\`"; }

build() {
    command -v cargo-deb >/dev/null || cargo install --quiet --locked --no-default-features --version 3.8.0 cargo-deb
    case "${1:-}" in
        "") cargo deb --quiet --locked -p probeops-agent --output "$work/agent.deb" >/dev/null ;;
        --no-build) cargo deb --quiet --no-build --profile release -p probeops-agent --output "$work/agent.deb" >/dev/null ;;
        *) fail "unknown option $1" ;;
    esac
}

inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"; }
as_uid() { local uid=$1 gid=$2; shift 2; inside setpriv --reuid "$uid" --regid "$gid" --clear-groups --bounding-set -all --no-new-privs "$@"; }
ping_groups() { tr '\t' ' ' </proc/sys/net/ipv4/ping_group_range; }
group() { inside getent group probeops | cut -d: -f3; }
# The names of every account and group.
names() { cat "$root"/etc/{passwd,group,shadow,gshadow} | sort; }
install_package() { inside dpkg --install /agent.deb >"$work/dpkg" 2>&1 || { cat "$work/dpkg"; fail "dpkg cannot install it"; }; }

files_are_as_they_should() {
    local expected path owner
    while read -r path expected; do
        [ -e "$root$path" ] || fail "$path is not there"
        owner=$(inside stat --format "%U:%G:%a" "$path")
        same "$expected" "$owner" "owner, group and mode of $path"
    done <<'FILES'
/usr/bin/probeops-agent root:root:755
/usr/lib/systemd/system/probeops-agent.service root:root:644
/usr/share/probeops-agent/60-probeops-agent.conf root:root:644
/etc/sysctl.d/60-probeops-agent.conf root:root:644
/etc/default/probeops-agent root:root:640
/etc/probeops root:probeops:750
/var/lib/probeops-agent probeops:probeops:700
/etc/probeops/agent.toml root:probeops:640
/etc/probeops/policy.toml root:probeops:640
FILES
    same "/etc/default/probeops-agent /etc/probeops/agent.toml /etc/probeops/policy.toml" \
        "$(inside dpkg-query --show --showformat '${Conffiles}\n' probeops-agent | awk 'NF { print $1 }' | sort | xargs)" "the conffiles"
    same "probeops:/nonexistent:/usr/sbin/nologin" "$(inside getent passwd probeops | cut -d: -f1,6,7)" "the account"
}

program_runs() {
    local version printed
    version=$(inside dpkg-query --show --showformat '${Version}' probeops-agent)
    same "probeops-agent ${version%-*}" "$(as_uid probeops probeops probeops-agent --version)" "the version"
    printed=$(as_uid probeops probeops probeops-agent --config /etc/probeops/agent.toml --servers tls://broker.example:4222 --print-config)
    grep --quiet --fixed-strings 'policy = "/etc/probeops/policy.toml"' <<<"$printed" || fail "the settings that it reads are: $printed"
    ! as_uid 65534 65534 cat /etc/probeops/agent.toml 2>/dev/null || fail "everybody can read agent.toml"
    # Root enrols the machine for it, and is told what is missing; the key that it made is the agent's.
    ! inside probeops-agent enroll http://127.0.0.1:1 --no-token >"$work/enroll" 2>&1 || fail "it enrolled with nobody"
    grep --quiet "cannot reach the API" "$work/enroll" || fail "it says of an API that is not there: $(cat "$work/enroll")"
    same "probeops:probeops:600" "$(inside stat --format "%U:%G:%a" /var/lib/probeops-agent/node.nk)" "the owner of the node's key"
    # Nobody has asked it to: it has no credential yet.
    [ ! -e "$root/etc/systemd/system/multi-user.target.wants/probeops-agent.service" ] || fail "it is enabled before it has a credential"
}

units_are_sound() {
    local unit found
    # Those of the API, the keymaster and the sentry are in no package yet; that there is a program is all that is looked at of it.
    cp cli/dist/*.service "$root/etc/systemd/system/"
    cp "$root/usr/bin/probeops-agent" "$root/usr/local/bin/probeops"
    for unit in /usr/lib/systemd/system/probeops-agent.service /etc/systemd/system/probeops-{api,keymaster,sentry}.service; do
        found=$(inside systemd-analyze verify "$unit" 2>&1) || fail "$unit: $found"
        same "" "$(grep probeops <<<"$found" || true)" "what systemd says of $unit"
        inside systemd-analyze security --offline=true --no-pager --threshold=19 "$unit" >"$work/security" ||
            { cat "$work/security"; fail "$unit is not below an exposure of 2.0"; }
        echo "$unit: exposed to $(sed -n 's/.*: \([0-9.]*\) .*/\1/p' "$work/security" | tail -1), where less than 2.0 is allowed"
        grep --quiet '^LimitCORE=0$' "$root$unit" || fail "$unit lets a core be dumped"
    done
    rm "$root"/etc/systemd/system/probeops-{api,keymaster,sentry}.service "$root/usr/local/bin/probeops"
}

# With a copy that has no capability of its own, which the kernel would not start without them.
group_can_ping() {
    as_uid probeops probeops /ping -c 1 -W 2 127.0.0.1 >/dev/null || fail "the agent's group cannot ping"
    ! as_uid 65534 65534 /ping -c 1 -W 2 127.0.0.1 >/dev/null 2>&1 || fail "everybody can ping"
}

upgrade_keeps_what_was_changed() {
    echo 'slots_probe = 7' >>"$root/etc/probeops/agent.toml"
    echo '# changed' >>"$root/etc/sysctl.d/60-probeops-agent.conf"
    install_package
    grep --quiet 'slots_probe = 7' "$root/etc/probeops/agent.toml" || fail "an upgrade undid a setting"
    grep --quiet '# changed' "$root/etc/sysctl.d/60-probeops-agent.conf" || fail "an upgrade undid a change of the ping groups"
    files_are_as_they_should
}

remove_keeps_settings() {
    touch "$root/etc/probeops/node.creds" "$root/var/lib/probeops-agent/node.nk"
    inside dpkg --remove probeops-agent >/dev/null
    for gone in /usr/bin/probeops-agent /usr/lib/systemd/system/probeops-agent.service /usr/share/probeops-agent; do
        [ ! -e "$root$gone" ] || fail "$gone is there after the removal"
    done
    grep --quiet 'slots_probe = 7' "$root/etc/probeops/agent.toml" || fail "the removal took the settings along"
    [ -n "$(group)" ] || fail "the removal took the group along, which owns the settings"
}

purge_leaves_nothing() {
    inside dpkg --purge probeops-agent >/dev/null 2>&1 || fail "dpkg cannot purge it"
    same "$accounts" "$(names)" "accounts and groups after the purge"
    # What dpkg, adduser and systemd keep for themselves may differ; nothing else on this machine does, by content or by absence.
    same "" "$(find "$upper" -mindepth 1 ! -type d -printf '/%P\n' | grep --invert-match --extended-regexp \
        '^/(agent\.deb$|ping$|var/lib/dpkg/|var/log/|run/adduser$|run/systemd/systemd-units-load$|etc/(passwd|group|shadow|gshadow)-?$|etc/\.pwd\.lock$|etc/subuid-?$|etc/subgid-?$)' || true)" \
        "what is left"
    same "" "$(find "$upper" -name '*probeops*')" "what is left by name"
}

# Installs where the ping groups are as given, and sees what becomes of them.
ping_groups_become() {
    local before=$1 expected=$2
    echo "$before" >/proc/sys/net/ipv4/ping_group_range
    install_package
    expected=${expected//GROUP/$(group)}
    same "$expected" "$(ping_groups)" "the ping groups, which were $before"
    same "net.ipv4.ping_group_range = $expected" "$(grep --invert-match '^#' "$root/etc/sysctl.d/60-probeops-agent.conf")" "the setting"
}

# In namespaces of its own, where the ping groups can be set and mounts end with this process.
test_package() {
    local upper=$work/view/upper root=$work/view/root accounts
    mkdir "$work/view"
    mount -t tmpfs tmpfs "$work/view"
    mkdir "$upper" "$work/view/work" "$root"
    mount -t overlay -o "lowerdir=/,upperdir=$upper,workdir=$work/view/work" overlay "$root"
    mount -t proc proc "$root/proc"
    mount --bind /dev "$root/dev"
    ip link set lo up
    for program in adduser deluser ping setpriv systemd-analyze; do
        inside sh -c "command -v $program" >/dev/null || fail "this needs $program: apt-get install adduser iputils-ping util-linux systemd"
    done
    ! inside getent passwd probeops >/dev/null || fail "this machine has a user probeops already"
    accounts=$(names)
    cp "$work/agent.deb" "$root/agent.deb"
    inside sh -c 'cp "$(command -v ping)" /ping'

    ping_groups_become "1 0" "GROUP GROUP"
    files_are_as_they_should
    program_runs
    units_are_sound
    group_can_ping
    upgrade_keeps_what_was_changed
    remove_keeps_settings
    purge_leaves_nothing
    for ranges in "0 2147483647:0 2147483647" "5 6:5 GROUP" "60000 60001:GROUP 60001"; do
        ping_groups_become "${ranges%:*}" "${ranges#*:}"
        purge_leaves_nothing
    done
    ln -s /dev/null "$root/etc/sysctl.d/60-probeops-agent.conf"
    echo "1 0" >/proc/sys/net/ipv4/ping_group_range
    install_package
    same "1 0" "$(ping_groups)" "the ping groups, which were forbidden to change"
    purge_leaves_nothing
}

if [ "${1:-}" = --test ]; then
    work=$2
    test_package
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    build "$@"
    unshare --mount --net --pid --fork --mount-proc "$PWD/tests/deb.sh" --test "$work"
    echo "$(basename "$(dpkg-deb --show --showformat '${Package}_${Version}_${Architecture}.deb' "$work/agent.deb")"): installed, upgraded, removed and purged"
fi
