"""The rooms behind the scripts: what some flags need, one topic each. A script and common.py train without them."""
