"""Many conversions: a manifest of entries, a lock of what was done, workers that do the rest.

manifest.yaml ─► entries ─► stale ones ─► workers, within one memory budget ─► manifest.lock.json
                    ▲                                                               │
                    └──────────── nothing is done twice: same digests ◄─────────────┘
"""

from __future__ import annotations
