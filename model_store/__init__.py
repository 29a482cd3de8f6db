"""The model store's format, and the offline world that writes it.

Read in this order:

1. `manifest`: the words: a model's id, its files, the manifest of one version.
2. `store`: list, resolve, open with verified digests, publish all or nothing, aliases; `disk` is what it writes with,
   `external_data` what a model file may make others read.
3. `encoding` (with `words`): text or pair to token ids.
4. `classifier`: `OnnxClassifier`: encode, run, scores; what the gate and the server both run. `seats`: where its
   threads are kept.
5. `statistics`: intervals for comparisons. `machine`: what figures were measured on.
6. `errors`: every error of the above. `extras`: which package brings what is missing.
7. `builder`: the offline build. torch and transformers live there and nowhere else.
"""

import os

# ONNX Runtime's own builds report to their maker, and write a device id into the home folder, unless this is set
# before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
