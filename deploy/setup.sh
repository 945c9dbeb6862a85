#!/usr/bin/env bash
# Checks what a build needs and, on Debian and Ubuntu, installs it by apt when it may (root, or sudo without a
# password). Elsewhere it names what is missing. Downloads nothing but apt packages; does nothing when all is there.
set -euo pipefail

RUST_MIN="1.95"
missing=()

need() { # need <package> <command that proves it>
    local package="$1"
    shift
    if ! "$@" >/dev/null 2>&1; then missing+=("$package"); fi
}

# A compiler alone is not enough: RocksDB needs the headers of the C++ library too.
have_cxx() {
    local cxx="${CXX_PLAIN:-c++}"
    command -v cc && command -v "$cxx" && echo '#include <string>' | "$cxx" -x c++ -fsyntax-only -
}

# bindgen loads libclang at build time to read RocksDB's header. Clang's C++ interface (libclang-cpp) is another library.
have_libclang() {
    if [ -n "${LIBCLANG_PATH:-}" ]; then return 0; fi
    local found
    found="$(find /usr/lib /usr/lib64 /usr/local/lib /opt/homebrew/opt/llvm/lib /Library/Developer/CommandLineTools/usr/lib \
        -maxdepth 4 \( -name 'libclang.so*' -o -name 'libclang-[0-9]*.so*' -o -name 'libclang.dylib' \) -print -quit 2>/dev/null || true)"
    [ -n "$found" ]
}

need build-essential have_cxx
need libclang-dev have_libclang
need make command -v make
need ccache command -v ccache

as_root=()
may_install() {
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then return 0; fi
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root=(sudo -n)
        return 0
    fi
    return 1
}

# What a Debian package is for, and how it is called by <manager>.
purpose_of() { # purpose_of <package>
    case "$1" in
    build-essential) echo "a C and C++ compiler with the headers of its library" ;;
    libclang-dev) echo "libclang, which bindgen loads (or set LIBCLANG_PATH)" ;;
    make) echo "GNU make" ;;
    ccache) echo "ccache (without it every new target directory compiles RocksDB again)" ;;
    esac
}

called_by() { # called_by <manager> <package>
    case "$1:$2" in
    dnf:build-essential) echo gcc-c++ ;;
    dnf:libclang-dev) echo clang-devel ;;
    zypper:build-essential) echo gcc-c++ ;;
    zypper:libclang-dev) echo clang-devel ;;
    pacman:build-essential) echo base-devel ;;
    pacman:libclang-dev) echo clang ;;
    apk:build-essential) echo build-base ;;
    apk:libclang-dev) echo clang-dev ;;
    brew:build-essential) echo gcc ;;
    brew:libclang-dev) echo llvm ;;
    *) echo "$2" ;;
    esac
}

# Each thing that is missing with its purpose, and the command that gets all of them from the package manager that is here.
name_missing() {
    local package manager
    for package in "${missing[@]}"; do echo "setup: missing: $(purpose_of "$package")"; done
    for manager in apt-get dnf zypper pacman apk brew; do
        command -v "$manager" >/dev/null || continue
        local names=()
        for package in "${missing[@]}"; do names+=("$(called_by "$manager" "$package")"); done
        case "$manager" in
        apt-get) echo "setup: as root: apt-get install ${names[*]}" ;;
        pacman) echo "setup: as root: pacman -S ${names[*]}" ;;
        apk) echo "setup: as root: apk add ${names[*]}" ;;
        brew) echo "setup: brew install ${names[*]}" ;;
        *) echo "setup: as root: $manager install ${names[*]}" ;;
        esac
        return
    done
    echo "setup: no package manager that is known here; get them as your system does"
}

if [ "${#missing[@]}" -gt 0 ]; then
    if may_install; then
        echo "setup: installing ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        install=(apt-get install -y -q --no-install-recommends "${missing[@]}")
        # The package lists may be old or absent; fetch them only if it does not work without.
        if ! "${as_root[@]}" "${install[@]}" >/dev/null 2>&1; then
            "${as_root[@]}" apt-get update -q
            "${as_root[@]}" "${install[@]}"
        fi
    else
        name_missing >&2
        # Without ccache a build is only slower.
        if [ "${missing[*]}" != ccache ]; then exit 1; fi
    fi
fi

# For the suites that cut networks and power (`power`, `partition`, `make chaos`): without them these suites say that they
# were skipped. Nothing else needs them, so failing to get them is no error.
fault_tools=(nft:nftables xfs_io:xfsprogs ip:iproute2 mkfs.ext4:e2fsprogs nsenter:util-linux)
lacking=()
for pair in "${fault_tools[@]}"; do
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null; then lacking+=("${pair##*:}"); fi
done
if [ "${#lacking[@]}" -gt 0 ]; then
    if may_install && DEBIAN_FRONTEND=noninteractive "${as_root[@]}" \
        apt-get install -y -q --no-install-recommends "${lacking[@]}" >/dev/null 2>&1; then
        echo "setup: installed ${lacking[*]} for the fault suites"
    else
        echo "setup: the fault suites will be skipped without: ${lacking[*]}"
    fi
fi

if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing: get Rust $RUST_MIN or newer from https://rustup.rs" >&2
    exit 1
fi
version="$(rustc --version | cut -d' ' -f2)"
oldest="$(printf '%s\n%s\n' "$RUST_MIN" "$version" | sort -V | head -n1)"
if [ "$oldest" != "$RUST_MIN" ]; then
    echo "setup: Rust $version is too old, $RUST_MIN is needed: rustup update stable" >&2
    exit 1
fi
echo "setup: all there (Rust $version)"
