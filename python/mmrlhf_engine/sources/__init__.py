"""Raw files to records and media, for every stage that reads what users bring.

- ``files``: opening, decompressing, and the format of a file or folder;
- ``text`` and ``columnar``: records of JSON text, batches of Parquet and Arrow;
- ``samples``: raw corpora of any of these formats as batches of records (``ingest``);
- ``preferences``: preference data as rows, and what the conversation formats mean (``pack``);
- ``pictures`` and ``video``: the pictures that messages name, the frames of videos.
"""
