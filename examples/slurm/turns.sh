# shellcheck shell=bash
# For sbatch scripts: source it, then `in_turns <command>`.
#
# Slurm ends jobs: at their time limit, or for others that go first. The scripts ask for SIGTERM two minutes before
# (--signal=B:TERM@120). Then the command saves and stops, and the job is queued again. Its next turn is the same command,
# which goes on where it stopped.

in_turns() {
  local work status=0 stopped=
  "$@" &
  work=$!
  trap 'stopped=yes; ask_to_stop "$1" "$work"' TERM
  wait "$work" || status=$?
  if [ -n "$stopped" ]; then # which ended the first wait
    status=0
    wait "$work" || status=$?
  fi
  trap - TERM
  if [ -n "$stopped" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  return "$status"
}

# A step of several processes is asked through Slurm: srun itself would kill them at once.
ask_to_stop() {
  if [ "$1" = srun ]; then
    scancel --signal=TERM "$SLURM_JOB_ID.0"
  else
    kill -TERM "$2"
  fi
}
