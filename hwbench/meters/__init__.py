"""The meters; each reads its quantities in a reading of its own: error → memory → latency → energy.

Nothing polls while latency is taken. One file a meter; its name is the file's.
"""
