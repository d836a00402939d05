"""Labelers in a browser: a store of items and judgments, a queue, screening, and the pages (appendix B of the paper).

Store (store) of batches of items (items) -> leases, drafts and judgments (queue) by labelers (people) who passed
screening (screening) -> numbers of the admin page (progress), training data (the view `label_rows` of schema.sql).
"""
