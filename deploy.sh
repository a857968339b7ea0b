#!/usr/bin/env bash
# Sets up a blender-multiuser server on this computer, keeps it up to date, or takes it away. See usage below.

# shellcheck disable=SC2317 # functions are called by names put together, such as "${way}_install"
set -euo pipefail

readonly NAME=blender-multiuser
readonly CONTAINER=blender-multiuser-server
readonly IMAGE_USER=10001:10001
readonly UNIT=/etc/systemd/system/$NAME.service
readonly BINARY=/usr/local/bin/$NAME
readonly CONFIG=/etc/$NAME
readonly STATE=/var/lib/$NAME
# How long a start may take until the server answers, in seconds; a large scene takes time to read.
readonly PATIENCE=${PATIENCE:-120}

usage() {
    cat <<'TEXT'
Usage: sudo ./deploy.sh [--systemd] [--update | --uninstall] [--dry-run]

  (nothing)       install and start the server with Docker; again: see that all is in place
  --systemd       the same without Docker: the program and a systemd service
  --binary FILE   with --systemd: the program, if it is not to be built here
  --update        get the new version, save, start it; if it does not come up, go back to the old one
  --uninstall     stop and remove the server; session, backups and passwords stay
  --dry-run       say what would be done, and change nothing
TEXT
}

# --- speaking ---------------------------------------------------------------------------------------

step() { printf '\n== %s\n' "$*"; }
say() { printf '   %s\n' "$*"; }
warn() { printf '   ! %s\n' "$*" >&2; }
die() {
    printf '\nerror: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}

# Everything that changes this computer goes through here.
run() {
    if [ "$dry_run" = yes ]; then
        printf '   would run: %s\n' "$*"
    else
        "$@"
    fi
}

# Writes standard input to a file that only its owner reads.
write_private() {
    if [ "$dry_run" = yes ]; then
        cat >/dev/null
        say "would write $1, readable by its owner only"
    else
        # One that an earlier run has left may be readable by others.
        rm -f "$1.new"
        (umask 077 && cat >"$1.new") && mv "$1.new" "$1"
    fi
}

has() { command -v "$1" >/dev/null 2>&1; }

# --- this computer ----------------------------------------------------------------------------------

parse_arguments() {
    way=docker action=install dry_run=no given_binary='' way_given=no
    while [ $# -gt 0 ]; do
        case $1 in
            --systemd) way=systemd way_given=yes ;;
            --binary)
                [ $# -ge 2 ] || die "--binary needs a file"
                given_binary=$2
                shift
                ;;
            --update | --uninstall)
                [ "$action" = install ] || die "--update and --uninstall do not go together"
                action=${1#--}
                ;;
            --dry-run) dry_run=yes ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) die "unknown argument $1" "./deploy.sh --help says which there are." ;;
        esac
        shift
    done
    if [ -n "$given_binary" ]; then
        [ "$way" = systemd ] || die "--binary goes with --systemd; with Docker the image is built"
        [ -f "$given_binary" ] || die "there is no file $given_binary"
        given_binary=$(realpath "$given_binary")
    fi
    # What is installed already needs no flag to be found.
    if [ "$way_given" = no ] && [ "$action" != install ] && [ -e "$UNIT" ] && ! docker_installed; then way=systemd; fi
}

require_root() {
    [ "$dry_run" = yes ] || [ "$(id -u)" -eq 0 ] || die "this needs the rights of root" "Run it as: sudo ./deploy.sh ${*:-}"
}

# Sets `family` to what installs packages here, or to nothing.
find_system() {
    local release=${OS_RELEASE:-/etc/os-release} ids
    family='' system=unknown
    [ -r "$release" ] || return 0
    ids="$(setting ID "$release") $(setting ID_LIKE "$release")"
    system=$(setting PRETTY_NAME "$release")
    case " $ids " in
        *" debian "* | *" ubuntu "*) family=debian ;;
        *" fedora "*) family=fedora ;;
    esac
}

# Says what may be the reason that something could not be fetched.
network_hint() {
    local host=${1:-registry-1.docker.io}
    if timeout 8 bash -c "exec 3<>/dev/tcp/$host/443" 2>/dev/null; then
        printf '%s' "$host can be reached, so look at the lines above for the reason."
    else
        printf '%s' "$host cannot be reached: this computer has no network, no name server, or a firewall that forbids it."
    fi
}

port_in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

require_free_ports() {
    local port owner
    for port in $(seq "$port_first" "$port_last"); do
        if port_in_use "$port"; then
            owner=''
            if has ss; then owner=$(ss -Hltnp "sport = :$port" 2>/dev/null | sed -n 's/.*users:((\("[^"]*"\).*/ by \1/p' | head -n 1); fi
            die "port $port is in use$owner" \
                "Stop that program, or choose other ports: PORT=5600 (and the three after it) in $settings, then run this again."
        fi
    done
}

# --- settings ---------------------------------------------------------------------------------------

# The value of a setting in a file like .env.example; nothing if it is not there.
setting() {
    [ -r "$2" ] || return 0
    sed -n "s/^$1=//p" "$2" | tail -n 1 | tr -d '\r' | sed "s/^\(['\"]\)\(.*\)\1\$/\2/"
}

# 20 characters, none of which is mistaken for another when read out.
new_password() {
    head -c 4096 /dev/urandom | LC_ALL=C tr -dc 'a-hjkmnp-z2-9' | cut -c 1-20 | sed 's/..../&-/g; s/-$//'
}

# Sets the four ports from a file of settings.
read_ports() {
    settings=$1
    port_first=$(setting PORT "$settings")
    port_first=${port_first:-5555}
    if ! [[ $port_first =~ ^[1-9][0-9]{3,4}$ ]] || [ "$port_first" -lt 1024 ] || [ "$port_first" -gt 65532 ]; then
        die "PORT=$port_first in $settings cannot be used" "Take a number from 1024 to 65532: three more ports follow it."
    fi
    port_last=$((port_first + 3))
}

# --- firewall ---------------------------------------------------------------------------------------

ufw_active() { has ufw && ufw status 2>/dev/null | grep -q '^Status: active'; }
firewalld_active() { has firewall-cmd && firewall-cmd --state >/dev/null 2>&1; }

open_firewall() {
    step "Firewall"
    if ufw_active; then
        run ufw allow "$port_first:$port_last/tcp" comment "$NAME"
    elif firewalld_active; then
        # Both, as a reload would throw away what Docker has set up.
        run firewall-cmd --quiet --add-port="$port_first-$port_last/tcp"
        run firewall-cmd --quiet --permanent --add-port="$port_first-$port_last/tcp"
    else
        say "neither ufw nor firewalld is active here; nothing to open"
    fi
    say "A firewall of your cloud provider or router is yours to open: TCP $port_first-$port_last."
}

close_firewall() {
    if ufw_active; then
        run ufw delete allow "$port_first:$port_last/tcp"
    elif firewalld_active; then
        run firewall-cmd --quiet --remove-port="$port_first-$port_last/tcp"
        run firewall-cmd --quiet --permanent --remove-port="$port_first-$port_last/tcp"
    fi
}

# --- by Docker --------------------------------------------------------------------------------------

compose() {
    if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}
has_compose() { docker compose version >/dev/null 2>&1 || has docker-compose; }

# Those of these packages that the system knows.
known_packages() {
    local package
    for package in "$@"; do
        if apt-cache show "$package" >/dev/null 2>&1; then printf '%s\n' "$package"; fi
    done
}

install_packages() {
    case $family in
        debian)
            run env DEBIAN_FRONTEND=noninteractive apt-get install -y "$@" ||
                die "$* could not be installed" "$(network_hint deb.debian.org)"
            ;;
        fedora) run dnf install -y "$@" || die "$* could not be installed" "$(network_hint mirrors.fedoraproject.org)" ;;
    esac
}

docker_install_engine() {
    local packages=()
    step "Docker"
    if has docker && has_compose; then
        say "is here: $(docker --version)"
    else
        [ -n "$family" ] || die "this system ($system) is none that this script can install Docker on" \
            "Install Docker and Docker Compose yourself (https://docs.docker.com/engine/install/), then run this again."
        if [ "$family" = debian ]; then
            run apt-get update -q || warn "the list of packages could not be renewed"
            has docker || mapfile -t packages < <(known_packages docker.io)
            if ! has docker || ! has_compose; then
                mapfile -t -O "${#packages[@]}" packages < <(known_packages docker-compose-v2 docker-compose-plugin docker-compose | head -n 1)
            fi
            [ "${#packages[@]}" -gt 0 ] || die "apt knows no package with Docker" "$(network_hint deb.debian.org)"
        else
            has docker || packages+=(moby-engine)
            packages+=(docker-compose)
        fi
        install_packages "${packages[@]}"
        # Newer systems have the command in a package of its own.
        [ "$dry_run" = yes ] || has docker || install_packages docker-cli
    fi
    [ "$dry_run" = no ] || return 0
    docker info >/dev/null 2>&1 || systemctl enable --now docker >/dev/null 2>&1 || true
    docker info >/dev/null 2>&1 || die "the Docker engine does not answer" "See what it says: systemctl status docker"
}

# Fills in the passwords. Not by sed: every user of the computer can read its command line.
with_passwords() {
    local line
    while IFS= read -r line; do
        case $line in ADMIN_PASSWORD= | SERVER_PASSWORD=) line+=$(new_password) ;; esac
        printf '%s\n' "$line"
    done
}

docker_settings() {
    local last kept
    step "Settings"
    if [ -e .env ]; then
        say "keeping those in $PWD/.env"
    else
        [ -r .env.example ] || die "there is no .env.example beside this script" "It needs the whole checkout: get that anew."
        say "making $PWD/.env, with new passwords"
        with_passwords <.env.example | write_private .env
        # Whoever has put this directory here may read it, too.
        run chown --reference=. .env
    fi
    docker_read
    last=$(setting LAST_PORT .env)
    if [ "${last:-5558}" != "$port_last" ]; then
        say "LAST_PORT becomes $port_last, as PORT is $port_first"
        kept=$(sed '/^LAST_PORT=/d' .env)
        printf '%s\nLAST_PORT=%s\n' "$kept" "$port_last" | write_private .env
        run chown --reference=. .env
    fi
}

# Sets what of the settings this script needs itself.
docker_read() {
    read_ports .env
    data=$PWD/data
}

docker_data() {
    [ -d "$data" ] || run mkdir -p "$data"
    # Docker would make it root's; the server is not root.
    run chown -RH "$IMAGE_USER" "$data"
}

docker_running() { [ "$(docker inspect -f '{{.State.Running}}' "$CONTAINER" 2>/dev/null)" = true ]; }
docker_installed() { has docker && docker inspect "$CONTAINER" >/dev/null 2>&1; }
docker_image() { docker image inspect -f '{{.Id}}' "$1" 2>/dev/null || true; }

docker_build() {
    local kilobytes memory arguments=()
    # A sum, which is worked out as one below.
    kilobytes=$(sed -n 's/^\(MemAvailable\|SwapFree\): *\([0-9]*\) kB/\2/p' "${MEMINFO:-/proc/meminfo}" | paste -sd+)
    memory=$((kilobytes / 1024))
    [ "$memory" -ge 1500 ] || warn "only $memory MB of memory are free; if the build is killed, add swap: fallocate -l 2G /swap && chmod 600 /swap && mkswap /swap && swapon /swap"
    say "building the image; the first time this takes some minutes"
    [ -z "${BUILD_IMAGE:-}" ] || arguments=(--build-arg "BUILD_IMAGE=$BUILD_IMAGE")
    run docker build "${arguments[@]}" -t "$NAME" .
}

docker_start() {
    restarts=0
    run compose up -d --no-build || return
    restarts=$(docker_restarts)
}
docker_restarts() { docker inspect -f '{{.RestartCount}}' "$CONTAINER" 2>/dev/null || echo 0; }
docker_stop() { run compose stop; }
docker_healthy() { docker exec "$CONTAINER" "$NAME" health >/dev/null 2>&1; }
docker_given_up() { [ "$(docker_restarts)" -ge $((restarts + 3)) ]; }
docker_log() { docker logs --tail 15 "$CONTAINER" 2>&1 | sed 's/^/       /' || true; }
docker_control() { docker exec "$CONTAINER" "$NAME" ctl "$@"; }

docker_install() {
    # What is wrong with it is better told before anything is installed.
    read_ports .env
    docker_install_engine
    docker_settings
    docker_data
    if ! docker_installed || ! docker_running; then require_free_ports; fi
    step "Image"
    if has docker && [ -n "$(docker_image "$NAME")" ]; then
        say "is here; --update makes a new one"
    else
        docker_build || die "the image could not be built" "$(network_hint)"
    fi
    open_firewall
    step "Start"
    docker_start || die "the container could not be started; the reason is above"
}

# Sets `is_new` to no if this is what runs already. Builds before anything is stopped.
docker_get_new() {
    docker_read
    # That of the container: an image may have been built by hand, or by an update that was cut off.
    old_version=$(docker inspect -f '{{.Image}}' "$CONTAINER" 2>/dev/null || true)
    run docker tag "$old_version" "$NAME:previous"
    docker_build || die "the new version could not be built; the old one runs on" "$(network_hint)"
    [ "$dry_run" = yes ] || [ "$(docker_image "$NAME")" != "$old_version" ] || is_new=no
}
docker_switch() { :; }
docker_switch_back() {
    docker tag "$NAME" "$NAME:failed"
    docker tag "$NAME:previous" "$NAME"
}

docker_uninstall() {
    docker_read
    run compose down
    local image
    for image in "$NAME" "$NAME:previous" "$NAME:failed"; do
        [ -z "$(docker_image "$image")" ] || run docker image rm "$image"
    done
    kept=("session and backups: $data" "settings and passwords: $PWD/.env")
}

docker_passwords() {
    admin_password=$(setting ADMIN_PASSWORD .env)
    server_password=$(setting SERVER_PASSWORD .env)
    if [ -z "$admin_password" ] && [ -r "$data/admin_password" ]; then admin_password=$(cat "$data/admin_password"); fi
    password_place="$PWD/.env"
}

docker_hints() {
    cat <<TEXT
  Console          docker attach $CONTAINER     (leave it with Ctrl+P Ctrl+Q)
  One command      docker exec $CONTAINER $NAME ctl users
  Log              docker logs -f $CONTAINER
  Stop             cd $PWD && $(docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) stop
TEXT
}

# --- by systemd -------------------------------------------------------------------------------------

systemd_require() {
    local version
    has systemctl || die "this system has no systemd" "Run ./deploy.sh without --systemd to use Docker."
    version=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    [ "${version:-0}" -ge 247 ] || die "systemd $version is too old for this service, which needs 247 (Debian 11, Ubuntu 22.04, Fedora 34)" \
        "Run ./deploy.sh without --systemd to use Docker."
}

# Sets `program` to a server program: given, lying here, or built.
systemd_program() {
    step "Program"
    if [ -n "$given_binary" ]; then
        program=$given_binary
    elif [ -f "./$NAME" ]; then
        program=$PWD/$NAME
    elif has cargo; then
        say "building it; the first time this takes some minutes"
        run cargo build --locked --release || die "the program could not be built" "$(network_hint index.crates.io)"
        program=$PWD/target/release/$NAME
    elif has docker && docker info >/dev/null 2>&1; then
        docker_build || die "the program could not be built" "$(network_hint)"
        program=$PWD/target/$NAME
        run take_from_image "$program"
    else
        die "there is no program to install" "Give it with --binary FILE, put it here as ./$NAME, or install cargo or Docker to build it." \
            "If you have cargo in your own account, which sudo does not see: cargo build --release, then" \
            "sudo ./deploy.sh --systemd --binary target/release/$NAME"
    fi
    if [ "$dry_run" = no ]; then
        "$program" --version >/dev/null 2>&1 || die "$program does not run on this computer" "Is it for this kind of processor ($(uname -m))?"
        say "$program: $("$program" --version)"
    fi
}

take_from_image() {
    local container
    mkdir -p "$(dirname "$1")"
    container=$(docker create "$NAME")
    docker cp "$container:$BINARY" "$1"
    docker rm "$container" >/dev/null
}

systemd_settings() {
    step "Settings"
    local password
    [ -d "$CONFIG" ] || run install -d -m 700 "$CONFIG"
    for password in admin_password server_password; do
        if [ -e "$CONFIG/$password" ]; then
            say "keeping $CONFIG/$password"
        else
            new_password | write_private "$CONFIG/$password"
        fi
    done
    if [ -e "$CONFIG/settings.env" ]; then
        say "keeping $CONFIG/settings.env"
    else
        # The passwords are in files of their own.
        sed 's/^\(ADMIN\|SERVER\)_PASSWORD=.*/# (in a file of its own, beside this one)/; /^#\?\(LAST_PORT\|DATA_DIR\)=/d' .env.example |
            write_private "$CONFIG/settings.env"
    fi
    systemd_read
}

systemd_read() {
    read_ports "$CONFIG/settings.env"
    data=$STATE
}

systemd_running() { systemctl is-active --quiet "$NAME"; }
systemd_installed() { [ -e "$UNIT" ]; }

# A file at its place, whole at every moment: the running program cannot be written to.
put() {
    run install -m "$1" "$2" "$3.new"
    run mv "$3.new" "$3"
    if has restorecon; then run restorecon "$3"; fi
}

systemd_start() { run systemctl restart "$NAME"; }
systemd_stop() { run systemctl stop "$NAME"; }
systemd_healthy() { systemd_running && PORT=$port_first BIND=$(setting BIND "$settings") "$BINARY" health >/dev/null 2>&1; }
systemd_given_up() { systemctl is-failed --quiet "$NAME"; }
systemd_log() { journalctl -u "$NAME" -n 15 --no-pager 2>/dev/null | sed 's/^/       /' || true; }
systemd_control() { "$BINARY" --data-dir "$STATE" ctl "$@"; }

systemd_install() {
    systemd_require
    if [ -x "$BINARY" ]; then
        step "Program"
        say "is here; --update makes a new one"
    else
        systemd_program
        put 755 "$program" "$BINARY"
    fi
    systemd_settings
    systemd_running || require_free_ports
    step "Service"
    if cmp -s "$NAME.service" "$UNIT"; then
        say "is in place"
    elif [ -e "$UNIT" ]; then
        say "differs from the one here; --update puts that in place"
    else
        put 644 "$NAME.service" "$UNIT"
        run systemctl daemon-reload
    fi
    open_firewall
    step "Start"
    run systemctl enable --quiet "$NAME"
    systemd_running || systemd_start || true
}

systemd_get_new() {
    systemd_require
    systemd_program
    systemd_read
    if cmp -s "$program" "$BINARY" && cmp -s "$NAME.service" "$UNIT"; then
        is_new=no
        return
    fi
    run cp -p "$BINARY" "$BINARY.previous"
    run cp -p "$UNIT" "$UNIT.previous"
}
systemd_switch() {
    put 755 "$program" "$BINARY"
    put 644 "$NAME.service" "$UNIT"
    run systemctl daemon-reload
}
systemd_switch_back() {
    mv "$BINARY.previous" "$BINARY"
    mv "$UNIT.previous" "$UNIT"
    systemctl daemon-reload
    systemctl reset-failed "$NAME" || true
}

systemd_uninstall() {
    systemd_read
    run systemctl disable --now --quiet "$NAME"
    run rm -f "$UNIT" "$UNIT.previous" "$BINARY" "$BINARY.previous"
    run systemctl daemon-reload
    kept=("session and backups: $STATE" "settings and passwords: $CONFIG")
}

systemd_passwords() {
    local file
    file=$CONFIG/admin_password
    [ -s "$file" ] || file=$STATE/admin_password
    admin_password=$(cat "$file" 2>/dev/null || true)
    server_password=$(cat "$CONFIG/server_password" 2>/dev/null || true)
    password_place="$CONFIG/admin_password and server_password"
}

systemd_hints() {
    cat <<TEXT
  Console          sudo $NAME ctl users     (and other commands: ctl help)
  Log              journalctl -u $NAME -f
  Stop             sudo systemctl stop $NAME
TEXT
}

# --- what both do -----------------------------------------------------------------------------------

# Waits until the server answers an add-on's question.
healthy() {
    local end=$((SECONDS + PATIENCE))
    [ "$dry_run" = no ] || return 0
    until "${way}_healthy"; do
        if [ "$SECONDS" -ge "$end" ] || "${way}_given_up"; then return 1; fi
        sleep 1
    done
}

# The address from which this computer reaches others, without a packet being sent.
own_address() {
    if has ip; then ip -4 route get 192.0.2.1 2>/dev/null | sed -n 's/.* src \([0-9.]*\).*/\1/p'; fi
}

summary() {
    local address place=''
    address=$(own_address)
    case $address in
        10.* | 192.168.* | 172.1[6-9].* | 172.2?.* | 172.3[01].* | 100.*) place='  (in this network; from elsewhere the public address of this computer or its router)' ;;
    esac
    "${way}_passwords"
    # A terminal only: a build server's log or a file is read by others.
    if [ ! -t 1 ] || [ -n "${CI:-}" ]; then
        [ -z "$admin_password" ] || admin_password="see $password_place"
        [ -z "$server_password" ] || server_password="see $password_place"
    fi
    cat <<TEXT

The server is up. In Blender: 3D viewport > sidebar (N) > Multiuser > + (Add server preset)
  IP               ${address:-the address of this computer}$place
  Port             $port_first
  Server password  ${server_password:-leave the box empty: everybody who reaches the ports can join}
  Admin password   ${admin_password:-is in the log of the first start}  (only to start the session and manage it; others leave the box empty)
Then Connect. Somebody with the admin password presses Init to share a scene.

TEXT
    "${way}_hints"
}

install_it() {
    "${way}_install"
    [ "$dry_run" = no ] || return 0
    say "waiting until it answers"
    if ! healthy; then
        "${way}_log" >&2
        die "the server does not answer; above is the end of its log" "Mend that, then run this again: what is done stays done."
    fi
    summary
}

# As whoever owns this directory, so that no file in it comes to belong to root.
as_owner() {
    local owner
    owner=$(stat -c %U .)
    if [ "$(id -u)" -eq 0 ] && [ "$owner" != root ] && has runuser; then runuser -u "$owner" -- "$@"; else "$@"; fi
}

pull_sources() {
    if [ -z "$given_binary" ] && has git && as_owner git rev-parse --quiet --verify '@{upstream}' >/dev/null 2>&1; then
        step "Sources"
        run as_owner git pull --ff-only || die "git pull failed; nothing has changed" \
            "If files here were edited: git stash, then run this again. Otherwise: $(network_hint github.com)"
    else
        say "taking the files of this directory as they are"
    fi
}

# A copy of the data directory of the stopped server, since an older version may not read what a newer one has written.
copy_data() {
    copy=$(readlink -f "$data").before-update || return
    run rm -rf "$copy"
    run cp -a --reflink=auto "$(readlink -f "$data")" "$copy"
}

roll_back() {
    local failed real
    real=$(readlink -f "$data")
    failed=$real.failed-update-$(date +%Y%m%d-%H%M%S)
    warn "the new version does not answer; the end of its log:"
    "${way}_log" >&2
    step "Going back to the old version"
    "${way}_stop" || true
    mv "$real" "$failed" ||
        die "$real cannot be put aside; the server is stopped" "What it was before the update is in $copy: put that in its place."
    cp -a --reflink=auto "$copy" "$real" ||
        die "$copy cannot be copied to $real; the server is stopped" "Is there room on the disk? See: df -h" "What the new version left is in $failed."
    "${way}_switch_back"
    "${way}_start" || true
    healthy || die "the old version does not answer either" "Its data is in $copy, and what the new version made of it in $failed."
    die "the update failed; the old version runs again, with the session as it was" "What the new version left is in $failed; delete it when nobody needs it."
}

update_it() {
    "${way}_installed" || [ "$dry_run" = yes ] || die "there is no server to update here" "Install one first: sudo ./deploy.sh"
    pull_sources
    step "New version"
    is_new=yes
    "${way}_get_new"
    if [ "$is_new" = no ]; then
        say "this version is installed already; nothing to do"
        return 0
    fi
    step "Backup"
    if [ "$dry_run" = no ] && "${way}_running"; then
        "${way}_control" save "before an update" || warn "the server could not make a backup; its data is copied once it has stopped"
    fi
    "${way}_stop"
    if ! copy_data; then
        run rm -rf "$copy"
        "${way}_start"
        die "the data could not be copied; the old version runs again" "Is there room on the disk? See: df -h"
    fi
    step "Start of the new version"
    "${way}_switch"
    if ! "${way}_start" || ! healthy; then roll_back; fi
    [ "$dry_run" = no ] || return 0
    say "the new version answers; the data as it was before is in $copy"
    summary
}

uninstall_it() {
    local line
    "${way}_installed" || [ "$dry_run" = yes ] || die "there is no server to remove here"
    step "Removing the server"
    "${way}_uninstall"
    close_firewall
    step "Kept"
    for line in "${kept[@]}"; do say "$line"; done
    say "To be rid of them, too, delete them by hand."
}

main() {
    cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")"
    parse_arguments "$@"
    require_root "$@"
    find_system
    "${action}_it"
    # An update may have replaced this very file, of which bash would read on here.
    exit 0
}

main "$@"
