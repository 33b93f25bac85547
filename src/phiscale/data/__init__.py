"""Images: where they come from, whether they are sound, and how they become batches.

    sources.py      a folder, manifest or torchvision data set -> ImageSource (classes, records, splits)
    listing.py      what the three readers below hand to sources.py
    folders.py      one folder per class, with or without train/ and val/
    manifests.py    CSV and Parquet manifests, and split files
    published.py    torchvision's data sets
    decode.py       any image file -> 8-bit RGB or grey
    quiet.py        Pillow without its warnings
    probe.py        one image looked at for the scan
    scan.py         every image read once -> ScanReport
    duplicates.py   exact and near duplicates
    transforms.py   Preprocess carried out: image -> uint8 tensor -> normalised batch
    augment.py      the random transforms of training
    cache.py        decoded pixels, in memory or in a file
    loading.py      data set and loader

No module above transforms.py imports torch by itself, so that ``phiscale scan`` starts at once.
"""
