"""Copy-and-paste pictures for a class-agnostic detector, and the pictures it is measured on.

Nothing but the seeding is shared with `datamodules.catalogues`, which composes the evaluation queries: the cutting, the
grounds and the layouts a detector is trained on are not those it is tested on. No label is read.
"""
