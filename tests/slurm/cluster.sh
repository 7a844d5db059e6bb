#!/usr/bin/env bash
# Runs a command with a Slurm of two nodes on this machine, which is stopped afterwards: cluster.sh COMMAND ...
# Needs root, and installs Debian's slurmctld, slurmd, slurm-client and munge where they are missing. Everything the
# daemons write lies in one folder below /tmp.
set -euo pipefail

die() { echo "cluster.sh: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root to run slurmctld, slurmd and munged"
if ! command -v slurmctld slurmd sbatch munged > /dev/null; then
  command -v apt-get > /dev/null || die "slurmctld, slurmd, sbatch or munged is missing; install Slurm"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge > /dev/null
fi
pgrep -x slurmctld > /dev/null && die "a slurmctld is running here already"

box=$(mktemp -d /tmp/reloss-slurm.XXXXXX)
chmod 755 "$box"
mkdir -p "$box"/{state,spool-n1,spool-n2,munge}
pids=()
take_down() {
  set +e
  for _ in $(seq 60); do  # a job's processes are Slurm's to end, so it must live until they are gone
    jobs=$(timeout 5 squeue --noheader --format=%A 2> /dev/null | sort -u)
    [ -z "$jobs" ] && break
    timeout 5 scancel $jobs 2> /dev/null
    sleep 0.5
  done
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null; done
  for _ in $(seq 50); do
    kill -0 "${pids[@]}" 2> /dev/null || break
    sleep 0.2
  done
  for pid in "${pids[@]}"; do kill -KILL "$pid" 2> /dev/null || true; done
  rm -rf "$box"
}
trap take_down EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# Two nodes that are both this machine. A requeued job waits until its credential expires: here 5 seconds.
cores=$(nproc)
cat > "$box/slurm.conf" << CONF
ClusterName=reloss
SlurmctldHost=localhost
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$box/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$box/state
SlurmdSpoolDir=$box/spool-%n
SlurmctldPidFile=$box/slurmctld.pid
SlurmdPidFile=$box/slurmd-%n.pid
SlurmctldLogFile=$box/slurmctld.log
SlurmdLogFile=$box/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
SlurmdTimeout=15
KillWait=5
MinJobAge=3600
NodeName=n[1-2] NodeHostname=localhost Port=[17001-17002] CPUs=$cores RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=15
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
CONF
export SLURM_CONF="$box/slurm.conf" RELOSS_SLURM=1

head -c 1024 /dev/urandom > "$box/munge/key" && chmod 400 "$box/munge/key"
chown -R munge: "$box/munge"
setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --socket="$box/munge/socket" \
  --key-file="$box/munge/key" --pid-file="$box/munge/pid" --log-file="$box/munge/log" --seed-file="$box/munge/seed" \
  > "$box/munged.log" 2>&1 &
pids+=($!)
for _ in $(seq 50); do [ -S "$box/munge/socket" ] && break; sleep 0.1; done
slurmctld -D > /dev/null 2>&1 &
pids+=($!)
for node in n1 n2; do
  slurmd -D -N "$node" > /dev/null 2>&1 &
  pids+=($!)
done
for _ in $(seq 100); do
  [ "$(sinfo --noheader --Node --partition=low --states=idle 2> /dev/null | wc -l)" = 2 ] && break
  sleep 0.2
done
[ "$(sinfo --noheader --Node --partition=low --states=idle | wc -l)" = 2 ] || {
  tail -n 20 "$box"/*.log >&2
  die "Slurm did not come up"
}
"$@"
