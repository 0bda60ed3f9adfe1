"""`python -m tokendeep.records`: the JSON Schemas of all files, as one JSON object."""

import json

from tokendeep.records import schemas

print(json.dumps(schemas(), indent=1))
