"Several processes share the cores while tests run, so each computes with one thread."
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
