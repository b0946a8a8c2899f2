#!/bin/bash
# A job's state as Snakemake calls it. LSF forgets: then its history is asked, and the file that it wrote of the job.
# What they do not know either has failed after GIGAPIPE_LSF_PATIENCE seconds, six times as long while LSF is out of
# reach, or it would be waited for without end.
job=$1
patience=${GIGAPIPE_LSF_PATIENCE:-600}
answer=${GIGAPIPE_LSF_ANSWER:-60} # seconds that LSF has to answer in: its commands wait for it without end
unknown=.snakemake/lsf/$job.unknown

end() {
    rm -f "$unknown"
    echo "$1"
    exit
}

said=$(timeout "$answer" bjobs -noheader -a -o stat "$job" 2>&1) || [ $? != 124 ] || said="no answer"
case "$said" in
    DONE) end success ;;
    EXIT | ZOMBI) end failed ;;
    PEND | RUN | PSUSP | USUSP | SSUSP | WAIT | PROV | UNKWN) end running ;;
    "" | *"not found"*) ;;
    *) patience=$((6 * patience)) ;;
esac

# -n 0: of all times. Its lines are broken anywhere and indented; the last word counts, for a job may be queued again.
history=$(timeout "$answer" bhist -n 0 -l "$job" 2> /dev/null | sed 's/^ \{21\}//' | tr -d '\n' |
    grep -oE ': (Done successfully|Completed <done>|Completed <exit>|Exited|Pending: Job has been requeued)' | tail -n 1)
case "$history" in
    *Done* | *"<done>") end success ;;
    *Exited | *"<exit>") end failed ;;
esac

# As `bsub -o` ends it.
last=$(cat .snakemake/lsf/"$job".*.out 2> /dev/null |
    grep -oE '^(Successfully completed\.|Exited with|TERM_[A-Z]+)' | tail -n 1)
case "$last" in
    Successfully*) end success ;;
    Exited* | TERM_*) end failed ;;
esac

mkdir -p .snakemake/lsf
[ -e "$unknown" ] || touch "$unknown"
if [ $(($(date +%s) - $(date -r "$unknown" +%s))) -ge "$patience" ]; then
    echo "job $job: neither bjobs nor bhist nor its output has said for $patience seconds how it ended: it has failed" >&2
    end failed
fi
echo running
