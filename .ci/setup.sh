#!/usr/bin/env bash
# Sets up a fresh machine: system libraries (only what is missing, only with root), a virtual environment, locked packages.
set -euo pipefail
cd "$(dirname "$0")/.."

# library that must be found -> Debian package that brings it
declare -A packages=(
  [libGL.so.1]=libgl1 [libEGL.so.1]=libegl1 [libOSMesa.so]=libosmesa6 [libusb-1.0.so.0]=libusb-1.0-0 [libgomp.so.1]=libgomp1
  [libX11.so.6]=libx11-6
)
missing=()
libraries=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p)
for library in "${!packages[@]}"; do
  grep -q "$library" <<<"$libraries" || missing+=("${packages[$library]}")
done
# The first that is there; one that is named is taken, or refused below.
for python in ${SODP3D_PYTHON:-python3.11 python3.12 python3.13 python3}; do
  if "$python" -c '' 2>/dev/null; then break; fi
done
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)

if ((${#missing[@]})); then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort)
  as_root=()
  if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
  echo "system packages missing: ${missing[*]}"
  if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "cannot install them without root; if a later step fails, run:  sudo apt-get install -y ${missing[*]}"
  fi
fi

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
  found=$("$python" --version 2>&1) || found="nothing that starts"
  echo "error: Python 3.11, 3.12 or 3.13 is needed, but $python is $found; install one or set SODP3D_PYTHON=/path/to/python3" >&2
  exit 1
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
stamp=.venv/installed-$(cat requirements.lock pyproject.toml setup.py | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
  echo "installing packages into .venv (about 3 GB, some minutes)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
  touch "$stamp"
fi
if ! failure=$(.venv/bin/python -c 'import open3d' 2>&1); then
  echo "$failure" >&2
  echo "error: Open3D cannot be imported; install: sudo apt-get install -y libgl1 libegl1 libusb-1.0-0 libgomp1 libx11-6" >&2
  exit 1
fi
