from pathlib import Path
def draw_sweep(sweep): return []
