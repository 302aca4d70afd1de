"""What some flags need, a module per topic. A script and common.py train without them."""
