"""What the paper reports on Adroit: success in %, as (mean, deviation over three seeds) for hammer, door and pen.

Its numbers are means of the five highest evaluations during training (section C.4).
"""

TASKS = ("adroit_hammer", "adroit_door", "adroit_pen")

Row = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

PRETRAINED: Row = ((20, 8), (55, 8), (28, 3))
WITHOUT_BC: Row = ((38, 3), (63, 3), (30, 5))
WITH_BC: Row = ((67, 6), (96, 1), (59, 4))

TABLE8: dict[str, Row] = {
    "BCRNN": ((0, 0), (0, 0), (9, 3)),
    "BCRNN+3D": ((8, 14), (0, 0), (8, 1)),
    "IBC": ((0, 0), (0, 0), (9, 2)),
    "IBC+3D": ((0, 0), (0, 0), (10, 1)),
    "Diffusion Policy": ((48, 17), (50, 5), (25, 4)),
    "Simple DP3": ((100, 0), (58, 4), (46, 5)),
    "DP3": ((100, 0), (62, 4), (43, 6)),
    "SODP, pre-trained (Table 9)": PRETRAINED,
    "SODP, fine-tuned without BC (Table 9)": WITHOUT_BC,
    "SODP, fine-tuned with BC": WITH_BC,
}
TABLE9: dict[str, Row] = {
    "pre-trained": PRETRAINED,
    "fine-tuned without BC": WITHOUT_BC,
    "fine-tuned with BC": WITH_BC,
}
AVERAGES: dict[Row, float] = {  # as printed; Diffusion Policy's three cells have a mean of 41.0
    TABLE8["BCRNN"]: 3.0,
    TABLE8["BCRNN+3D"]: 5.3,
    TABLE8["IBC"]: 3.0,
    TABLE8["IBC+3D"]: 3.3,
    TABLE8["Diffusion Policy"]: 31.7,
    TABLE8["Simple DP3"]: 68.0,
    TABLE8["DP3"]: 68.3,
    PRETRAINED: 34.3,
    WITHOUT_BC: 43.7,
    WITH_BC: 73.9,
}
