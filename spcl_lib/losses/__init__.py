"""The losses. Read `consistency`, then `stateless` (AN and others), `state` and `expected` (EN).

Notation: f score-map logits (B, C, G, G); s = f pooled over the cells (B, C); p = sigmoid(s);
m = sigmoid(f); z observed labels (B, C), one 1 per image, 0 = unknown; T_v reads a full-image
heatmap through view v. `registry.TERMS` lists the names of the losses.
"""
