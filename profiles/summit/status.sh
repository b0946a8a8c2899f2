#!/bin/bash
# A job's state as Snakemake calls it.
case "$(bjobs -noheader -a -o stat "$1")" in
    DONE) echo success ;;
    EXIT | ZOMBI) echo failed ;;
    *) echo running ;;
esac
