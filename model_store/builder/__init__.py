"""The offline world: a recipe becomes two published versions, a predecessor and its successor.

Read in this order:

1. `recipe` (with `documents`, `knobs`): every knob, typed; what can't work is refused here. `weights`: where a build
   starts.
2. `pipeline`: the method, top to bottom. `plan`: what it works from, checked. `runner` (with `progress`): steps run
   once. `publication`: into the store.
3. `data` (with `sources`, `tables`): rows, splits, overlap, digests. `metrics`: what tasks are judged by. `fetch`:
   pinned files of packages.
4. `step`: what every operator is made of. `operators/`: one file per method, found by its name in a recipe.
5. `training` (with `batches`, `loading`, `losses`, `bfloat16`): the one trainer. `layers`: a model's stack of layers.
   `rehearsal`: what they can't do is seen on random numbers first.
6. `export` (with `trimming`, `unpadding`), `quantization` (with `per_token`), `half_precision`, `artifacts`: the files.
   `evaluate`, `judgement`, `gate`, `report`: what they are worth.
7. `study`: methods compared over tasks and seeds. `cells` computes it, `records` and `results` keep it,
   `study_report` says what it found.
8. `cli`, `demo`, `study_cli`: the commands. `errors`: what they say in one line.

Importing `cli`, `study_cli`, `recipe`, `plan`, `pipeline` or an operator does not import torch: a recipe can be read
and checked without.
"""
