# Prints everything that the role needs to know of the host, as NAME=VALUE lines. Arguments:
# USER HOME PREFIX STATE_DIR CONFIG_DIR COMMAND UNIT_FILE DROP_IN NETWORKS_UNIT_FILE PACKAGE_MANAGER [PACKAGE...]
user=$1 home=$2 prefix=$3 state=$4 config=$5
shift 5
command=$1 unit=$2 drop_in=$3 networks=$4 manager=$5
shift 5

free_mib() {
    folder=$1
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    df --block-size=1M --output=avail "$folder" | tail -n 1 | tr -d ' '
}
# Owner, group and mode of a folder; nothing if it does not exist.
folder() {
    [ ! -d "$1" ] || stat --dereference --format='%U:%G %a' "$1"
}
# The same, and the hash, of a file that anyone may read.
file() {
    [ ! -f "$1" ] || printf '%s\n' "$(stat --format='%U:%G %a' "$1") $(sha256sum < "$1" | cut -d ' ' -f 1)"
}
# Whether another package pulled it in. apt would remove it together with that one; installing it by
# name prevents this. A stanza has three lines.
came_with_another() {
    grep -s -F -x -A 2 "Package: $1" /var/lib/apt/extended_states | grep -qx 'Auto-Installed: 1'
}
is_installed() {
    if [ "$manager" = apt ]; then
        dpkg-query --show --showformat='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed \
            && ! came_with_another "$1"
    else
        rpm --query --quiet --whatprovides "$1"
    fi
}
# A variable of the service as runner.env.j2 writes it; nothing if it is not set.
variable() {
    sed -n "s/^VICTORIA_RUNNER_$1=\"\(.*\)\"\$/\1/p" "$config/runner.env" 2>/dev/null | tail -n 1
}
# Podman's own command named docker has no such field, and is not a docker.
docker_answers() {
    timeout 20 docker info --format '{{.DockerRootDir}}' | grep -q .
}
# Whatever package it came from: docker-ce, moby, a vendor's.
has_docker() {
    PATH=$PATH:/usr/sbin:/sbin command -v dockerd || docker_answers
}
# As nft writes ranges of ids: first-last, separated by commas.
subordinate_ids() {
    grep "^$1:" /etc/subuid 2>/dev/null | while IFS=: read -r _ first count; do
        printf ', %s-%s' "$first" "$((first + count - 1))"
    done
}
say_if() {
    name=$1
    shift
    if "$@" >/dev/null 2>&1; then printf '%s\n' "$name=yes"; else printf '%s\n' "$name="; fi
}

printf '%s\n' "cgroup=$(stat --file-system --format=%T /sys/fs/cgroup)"
printf '%s\n' "free=$(free_mib "$prefix") $(free_mib "$state") $(free_mib "$home")"

account=$(getent passwd "$user")
uid=$(printf '%s\n' "$account" | cut -d : -f 3)
printf '%s\n' "account=$account"
printf '%s\n' "groups=$(id --groups --name "$user" 2>/dev/null)"
say_if has_subids sh -c 'grep "^$1:" /etc/subuid && grep "^$1:" /etc/subgid' sh "$user"
printf '%s\n' "subordinate_ids=$(subordinate_ids "$user")"
say_if lingers test -e "/var/lib/systemd/linger/$user"
say_if has_systemd test -S "/run/user/${uid:-none}/bus"

printf '%s\n' "home=$(folder "$home")"
printf '%s\n' "state_dir=$(folder "$state")"
printf '%s\n' "config_dir=$(folder "$config")"
printf '%s\n' "orchestrator_url=$(variable ORCHESTRATOR_URL)"
printf '%s\n' "container_runtime=$(variable CONTAINER_RUNTIME)"
say_if has_journal test -e "$state/journal.sqlite3"
printf '%s\n' "command=$(file "$command")"
printf '%s\n' "unit=$(file "$unit")"
say_if has_unit test -e "$unit"
printf '%s\n' "runs=$(systemctl show "$(basename "$unit")" --property=MainPID --value 2>/dev/null | grep -vx 0)"
say_if has_drain test -e "$drop_in/drain.conf"
say_if has_networks test -e "$networks"
printf '%s\n' "podman=$(podman --version 2>/dev/null | cut -d ' ' -f 3)"
say_if docker_answers docker_answers
say_if has_docker has_docker
printf '%s\n' "current=$(readlink "$prefix/current")"
printf '%s\n' "previous=$(readlink "$prefix/previous")"
printf '%s\n' "releases=$(cd "$prefix/releases" 2>/dev/null && for mark in */.complete; do dirname "$mark"; done | tr '\n' ' ')"

ours=
for path in "$unit" "$drop_in" "$networks" "$state" "$command" "$config" "$prefix"; do
    [ ! -e "$path" ] && [ ! -L "$path" ] || ours="$ours $path"
done
printf '%s\n' "ours=${ours# }"

missing=
for package in "$@"; do
    is_installed "$package" || missing="$missing $package"
done
printf '%s\n' "missing=$missing"
