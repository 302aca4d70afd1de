"""What some flags need, a module per topic. A script and common.py train without them."""

import os

SEVERAL = "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1"  # torchrun started several processes
