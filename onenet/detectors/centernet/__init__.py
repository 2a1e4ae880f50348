"""CenterNet (Objects as Points, Zhou et al., 2019, arXiv 1904.07850): objects as centre points."""
