"""Writes to its two streams as it is told: a JSON list of [descriptor, base64 text] in a file, each one write(2)."""

import base64
import json
import os
import sys

with open(sys.argv[1], encoding="utf-8") as script:
    steps = json.load(script)
for descriptor, text in steps:
    data = base64.b64decode(text)
    while data:
        data = data[os.write(descriptor, data) :]
