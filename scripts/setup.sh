#!/bin/sh
# Finds what tests, benchmarks and the demo need beside this repository: Go,
# the PostgreSQL server binaries, redis-server and, for the tests, Chromium. As root on Debian or Ubuntu
# it installs the missing ones (their system services are not started);
# elsewhere it says what to install and exits 1.
#
# The search for the binaries is the one of internal/devstack, that for Chromium
# the one of the tests of internal/console.

set -eu

usage() {
	cat <<'USAGE'
usage: scripts/setup.sh [--check] [--redis-optional] [--browser]

  --check           only look, install nothing
  --redis-optional  a missing redis-server is a warning, not an error
                    (the demo can use an embedded one; the tests cannot)
  --browser         find Chromium, too (in which the console is tested)
USAGE
}

say() { printf '%s\n' "setup: $*" >&2; }

check_only=no
redis_optional=no
browser=no
for arg in "$@"; do
	case $arg in
	--check) check_only=yes ;;
	--redis-optional) redis_optional=yes ;;
	--browser) browser=yes ;;
	-h | --help)
		usage
		exit 0
		;;
	*)
		say "unknown argument: $arg"
		usage >&2
		exit 2
		;;
	esac
done

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

# at_least HAVE WANT: is the dotted version HAVE the same as WANT or newer?
at_least() {
	awk -v have="$1" -v want="$2" 'BEGIN {
		n = split(have, h, "."); m = split(want, w, ".")
		for (i = 1; i <= (n > m ? n : m); i++) {
			if (h[i] + 0 > w[i] + 0) exit 0
			if (h[i] + 0 < w[i] + 0) exit 1
		}
		exit 0
	}'
}

# Sets go_version, or says what is wrong and fails.
find_go() {
	want=$(awk '$1 == "go" { print $2; exit }' "$root/go.mod")
	if ! command -v go >/dev/null 2>&1; then
		say "Go was not found in PATH: install Go $want or newer (https://go.dev/dl/)"
		return 1
	fi
	# Asked inside the module, so that a toolchain that Go fetches by itself counts.
	if ! have=$(cd "$root" && go env GOVERSION); then
		say "Go is too old: install Go $want or newer (https://go.dev/dl/)"
		return 1
	fi
	go_version=$have
	have=${have#go}
	have=${have%%[!0-9.]*}
	if ! at_least "$have" "$want"; then
		say "Go $have is too old: install Go $want or newer (https://go.dev/dl/)"
		return 1
	fi
}

# Sets pg_bin: PG_BIN alone if it is set, then PATH, then where packages put
# the binaries, newest first.
find_postgres() {
	pg_bin=
	if [ -n "${PG_BIN:-}" ]; then
		if [ -x "$PG_BIN/initdb" ] && [ -x "$PG_BIN/postgres" ]; then
			pg_bin=$PG_BIN
			return 0
		fi
		return 1
	fi
	if found=$(command -v initdb 2>/dev/null); then
		found=$(dirname -- "$(readlink -f -- "$found")")
		if [ -x "$found/postgres" ]; then
			pg_bin=$found
			return 0
		fi
	fi
	best=
	for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/local/pgsql/bin \
		/usr/local/opt/postgresql@*/bin /opt/homebrew/opt/postgresql@*/bin; do
		if ! [ -x "$dir/initdb" ] || ! [ -x "$dir/postgres" ]; then
			continue
		fi
		version=$("$dir/postgres" --version | awk '{ print $3 }')
		version=${version%%[!0-9.]*}
		if [ -z "$best" ] || ! at_least "$best" "$version"; then
			best=$version
			pg_bin=$dir
		fi
	done
	[ -n "$pg_bin" ]
}

find_redis() { command -v redis-server >/dev/null 2>&1; }

# Sets chromium.
find_chromium() {
	chromium=
	for name in chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable; do
		if chromium=$(command -v "$name" 2>/dev/null); then
			return 0
		fi
	done
	return 1
}

is_debian() { [ -r /etc/debian_version ] && command -v apt-get >/dev/null 2>&1; }

# Packages of servers start a system service unless a policy forbids it. Ours
# stands only while we install, and only where there is none.
policy=/usr/sbin/policy-rc.d
policy_is_ours=no
drop_policy() {
	if [ "$policy_is_ours" = yes ]; then
		rm -f -- "$policy"
		policy_is_ours=no
	fi
}
trap drop_policy EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

apt() {
	DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >&2
}

# install PACKAGE...: fetches the package lists only if a package is not in
# them, or if installing fails, which is what outdated lists look like.
install() {
	say "installing with apt-get: $*"
	if ! [ -e "$policy" ]; then
		policy_is_ours=yes
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	updated=no
	for package in "$@"; do
		if [ "$updated" = no ] && [ -z "$(apt-cache --names-only search "^$package\$")" ]; then
			apt update || return 1
			updated=yes
		fi
	done
	if ! apt install -y --no-install-recommends "$@"; then
		[ "$updated" = no ] && apt update && apt install -y --no-install-recommends "$@" || return 1
	fi
	drop_policy
}

find_go || exit 1

missing=
find_postgres || missing="$missing postgresql"
find_redis || missing="$missing redis-server"
[ "$browser" = no ] || find_chromium || missing="$missing chromium-headless-shell"

if [ -n "$missing" ] && [ -n "${PG_BIN:-}" ] && [ -z "$pg_bin" ]; then
	say "PG_BIN=$PG_BIN holds no initdb and postgres: correct or unset it"
	exit 1
fi

if [ -n "$missing" ] && [ "$check_only" = no ] && is_debian && [ "$(id -u)" -eq 0 ]; then
	for package in $missing; do
		install "$package" || say "installing $package failed"
	done
fi

status=0
if ! find_postgres; then
	say "PostgreSQL's server binaries were not found: install them (Debian: apt-get install postgresql) or set PG_BIN to their folder"
	status=1
fi
if find_redis; then
	redis=$(redis-server --version | sed -n 's/.*v=\([^ ]*\).*/redis-server \1/p')
elif [ "$redis_optional" = yes ]; then
	say "warning: redis-server was not found, an embedded one will be used (Debian: apt-get install redis-server)"
	redis="no redis-server"
else
	say "redis-server was not found: install it (Debian: apt-get install redis-server)"
	status=1
fi
if [ "$browser" = yes ] && ! find_chromium; then
	say "Chromium was not found, in which the console is tested: install it or Chrome (Debian: apt-get install chromium-headless-shell)"
	status=1
fi
[ "$status" -eq 0 ] || exit "$status"

printf 'setup: %s, %s in %s, %s%s\n' "$go_version" \
	"$("$pg_bin/postgres" --version | awk '{ print "PostgreSQL " $3 }')" "$pg_bin" "$redis" "${chromium:+, $chromium}"
