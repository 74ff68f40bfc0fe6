# Sourced by the scripts beside this folder: sees to it that the machine has what building and running need.
#
# What is missing is installed where that is possible without asking anybody (Debian or Ubuntu, as root or with a sudo
# that wants no password). Everywhere else the script says what to install and ends with 2.

readonly POSTGRES_MIN=15
readonly RUST_MIN=94 # of 1.x; `rust-version` in Cargo.toml

say() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    local hint
    for hint in "$@"; do printf 'hint: %s\n' "$hint" >&2; done
    exit 2
}

has_compiler() { command -v cc >/dev/null; }

# Linking is the proof: the library alone, without its development package, cannot be linked against.
has_libpq() {
    has_compiler && command -v pg_config >/dev/null &&
        printf 'int main(void) { return 0; }\n' | cc -x c - -L"$(pg_config --libdir)" -lpq -o /dev/null 2>/dev/null
}

# The daemon searches in more places; these are where packages put it.
has_postgres() {
    local bin major
    local -a found=()
    if command -v initdb >/dev/null; then found+=("$(dirname "$(command -v initdb)")"); fi
    for bin in "${found[@]}" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/lib/postgresql[0-9]*/bin /usr/libexec/postgresql*; do
        [[ -x $bin/initdb && -x $bin/postgres ]] || continue
        major=$("$bin/postgres" --version | sed -E 's/.*\(PostgreSQL\) ([0-9]+).*/\1/')
        if [[ $major =~ ^[0-9]+$ ]] && ((major >= POSTGRES_MIN)); then return 0; fi
    done
    return 1
}

# Judges the unit, its manual page included. Its tests say so where it is not there, so that nothing else depends on it.
has_systemd_analyze() { command -v systemd-analyze >/dev/null && command -v man >/dev/null; }

# Runs a command as root, or fails at once.
as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null || return 1
    ((EUID == 0)) || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

# What it says is shown only if it fails.
try_install() {
    say "Installing $*"
    local log failed=0
    log=$(mktemp)
    { as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
        >"$log" 2>&1 </dev/null || failed=1
    if ((failed)); then tail -n 20 "$log" >&2; fi
    rm -f "$log"
    return "$failed"
}

install_packages() {
    try_install "$@" || fail "installing $* did not work" "install them by hand, then run this again"
}

has_browser() {
    command -v chromedriver >/dev/null &&
        { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null
}

# For the tests in a real browser, which are skipped where there is none.
prepare_browser() {
    has_browser && return 0
    if may_install && try_install chromium chromium-driver && has_browser; then return 0; fi
    say "Skipped: the tests in a real browser (Debian: sudo apt-get install chromium chromium-driver to have them run)"
}

# Whether both programs run, by whose own words the proxies' lines in docs/OPERATIONS.md are good.
has_proxies() { nginx -v >/dev/null 2>&1 && caddy version >/dev/null 2>&1; }

# Unpacked, not installed: a web server that starts by itself is no part of a test. Their tests say so where there is none.
prepare_proxies() {
    local tools=$PWD/target/tools
    PATH="$PATH:$tools/usr/bin:$tools/usr/sbin"
    has_proxies && return 0
    say "Unpacking nginx and caddy below target/tools"
    if ! unpack "$tools" nginx caddy && may_install; then
        as_root apt-get update -qq >/dev/null && unpack "$tools" nginx caddy || :
    fi
    has_proxies || say "Skipped: the reverse proxies' lines (Debian: sudo apt-get install nginx caddy to have them checked)"
}

# Puts the contents of Debian packages below a folder.
unpack() {
    local folder=$1 work package failed=0
    shift
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    work=$(mktemp -d)
    (cd "$work" && apt-get download -qq "$@") >/dev/null 2>&1 || failed=1
    mkdir -p "$folder"
    for package in "$work"/*.deb; do
        ((failed)) || dpkg-deb -x "$package" "$folder" || failed=1
    done
    rm -rf "$work"
    return "$failed"
}

prepare_packages() {
    local -a missing=()
    has_compiler || missing+=(gcc libc6-dev)
    has_libpq || missing+=(libpq-dev)
    has_postgres || missing+=(postgresql)
    ((${#missing[@]})) || return 0
    may_install || fail "this machine lacks ${missing[*]}" \
        "Debian, Ubuntu: sudo apt-get install ${missing[*]}" \
        "elsewhere: a C compiler, libpq with its headers and \`pg_config\`, and a Postgres server, version $POSTGRES_MIN or newer"
    install_packages "${missing[@]}"
    has_compiler || fail "there is still no C compiler named \`cc\`"
    has_libpq || fail "a program still cannot be linked against libpq" "see what \`pg_config --libdir\` says"
    has_postgres || fail "the Postgres server of this distribution is older than $POSTGRES_MIN" \
        "https://www.postgresql.org/download/linux/ has newer packages"
}

# For `scripts/test` alone.
prepare_systemd_analyze() {
    has_systemd_analyze && return 0
    if may_install; then
        install_packages systemd man-db
    else
        say "The unit's tests are left out: there is no systemd-analyze or no man (Debian, Ubuntu: sudo apt-get install systemd man-db)"
    fi
}

# Arguments: the parts of the toolchain that are needed besides cargo itself.
prepare_rust() {
    # Where rustup puts it, if this shell has not been told yet.
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    command -v cargo >/dev/null || fail "there is no \`cargo\`" \
        "install Rust 1.$RUST_MIN or newer from https://rustup.rs"
    local minor component
    minor=$(cargo --version | sed -E 's/^cargo 1\.([0-9]+).*/\1/')
    if [[ $minor =~ ^[0-9]+$ ]] && ((minor < RUST_MIN)); then
        fail "Rust 1.$minor is too old" "run \`rustup update stable\`: 1.$RUST_MIN or newer is needed"
    fi
    for component in "$@"; do
        cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 && continue
        say "Adding $component to the Rust toolchain"
        rustup component add "$component" >&2 || fail "the Rust toolchain lacks $component"
    done
}
