#!/usr/bin/env bash
# Cut a model, heal it, and say whether it is good enough.
#
#   examples/ci/compress.sh RECIPE.toml OUTPUT COMMENT.md
#
# RECIPE.toml has the sections [decompose], [pretrain] and [eval] with max_drop, as recipe.toml beside
# this file. OUTPUT is its `output`. COMMENT.md is written in Markdown, for a comment on a pull request.
#
# Exit codes are those of pela: 0 good enough, 3 too much is lost, 2 the request was wrong, 1 something
# failed. With 0 and 3 the comment is there.
set -euo pipefail

recipe=$1 output=$2 comment=$3
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A mistake in the recipe, missing data or too little memory are told before anything is made.
pela recipes check "$recipe" > /dev/null

pela decompose "$recipe" > /dev/null
pela pretrain "$recipe" > /dev/null

gate=0
pela eval "$recipe" --json > "$work/eval.json" || gate=$?
if [ "$gate" -ne 0 ] && [ "$gate" -ne 3 ]; then
  exit "$gate"
fi

pela report "$output/pretrain" --by kind --format markdown > "$work/layers.md"
python "$here/comment.py" "$work/eval.json" "$work/layers.md" "$gate" > "$comment"
exit "$gate"
