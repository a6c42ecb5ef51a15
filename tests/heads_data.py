"""One sample for heads to learn: a crop of a photograph on a grey ground."""

import torch
import torch.nn.functional as F
from skimage import data


def photograph() -> tuple[torch.Tensor, torch.Tensor]:
    """An image [3, 96, 128] in 0..1 and the mask [96, 128] of the crop, columns 50 to 105 of rows 30 to 77."""
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    crop = F.interpolate(photo[None, :, 0:200, 130:330], (48, 56), mode="bilinear", antialias=True)[0]
    image, mask = torch.full((3, 96, 128), 0.5), torch.zeros(96, 128, dtype=torch.bool)
    image[:, 30:78, 50:106] = crop
    mask[30:78, 50:106] = True
    return image, mask
