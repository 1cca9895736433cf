"""CVACT's list of panoramas, `ACT_data.mat`."""

import io
import os

import numpy as np
from scipy.io import savemat

from utils.writing import whole_file

# A .mat file begins with 116 bytes of text; scipy's tell the time, and the same city is the same bytes.
HEADER = b"MATLAB 5.0 MAT-file of a procedural city".ljust(116)
# Where the map's origin lies in Canberra, UTM zone 55 south, metres.
EASTING, NORTHING = 693000.0, 6090000.0


def write_mat(out, cameras):
    """Write the ids, positions and 1-based indices of the splits, one level above the image folders."""
    index = {s: [k + 1 for k, c in enumerate(cameras) if c["split"] == s] for s in ("train", "val", "test")}
    names = [os.path.basename(c["ground"]).removesuffix("_grdView.jpg") for c in cameras]
    column = {s: np.array(v, np.float64).reshape(-1, 1) for s, v in index.items()}
    content = {
        "panoIds": np.array(names),
        "utm": np.array([[EASTING + c["x"], NORTHING + c["y"]] for c in cameras], np.float64).reshape(-1, 2),
        "trainSet": {"trainInd": column["train"]},
        "valSet": {"valInd": column["val"]},
        "valSetAll": {"valInd": column["test"]},
    }
    whole = io.BytesIO()
    savemat(whole, content)
    whole.getbuffer()[: len(HEADER)] = HEADER
    with whole_file(out / "ACT_data.mat") as file:
        file.write(whole.getbuffer())
