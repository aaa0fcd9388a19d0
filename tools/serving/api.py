"""The routes of the service: `/api/matte`, `/api/trimap`, `/api/info` and `/health`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile
from pydantic import BaseModel

from data.image_io.formats import READABLE
from data.trimap import WIDTH_PERCENT
from inference.auto.labels import MAX_CHARACTERS, parse_points
from tools.prediction.steps import parse_colour
from tools.serving.errors import RefusedError
from tools.serving.prediction_queue import ENDING
from tools.serving.service import Service

API_VERSION = "1.0"

IMAGE_FORMATS = ", ".join(sorted(set(READABLE.values())))

Image = Annotated[UploadFile, File(description=f"Photograph, 8 or 16 bit: {IMAGE_FORMATS}")]
OptionalTrimap = Annotated[
    UploadFile | None, File(description="Trimap of the image's size: 0 background, 255 foreground, between unknown")
]
OptionalMask = Annotated[UploadFile | None, File(description="Mask of the subject, any size")]
OptionalBackground = Annotated[UploadFile | None, File(description="Image to lay the subject over")]
Points = Annotated[
    str | None,
    Form(
        max_length=MAX_CHARACTERS,
        description="Clicks as JSON: x and y in px, and 1 for the subject or 0 for the background",
        examples=["[[120, 80, 1], [10, 10, 0]]"],
    ),
]
WidthPx = Annotated[int | None, Form(ge=1, le=10_000, description="Width of the unknown band around a mask, in px")]
WidthPercent = Annotated[
    float | None,
    Form(gt=0, le=100, description=f"The same in percent of the longer side (default: {WIDTH_PERCENT:g})"),
]
Threshold = Annotated[float | None, Form(gt=0, le=1, description="Value from which a soft mask is foreground")]

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"example": {"error": "what is wrong"}}}}
    for status, text in {
        400: "The form cannot be read",
        401: "No token, or a wrong one",
        403: "A page of another site asks",
        408: "The upload is too slow",
        413: "Too many pixels or bytes, or too little memory",
        421: "The Host header has a name that is not served",
        422: "The files or values cannot be used",
        501: "An optional package is not installed",
        503: "The queue is full (see Retry-After), or the server is ending",
        507: "The disk for temporary files is full",
    }.items()
}
RESULT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The image. Headers: X-Image-Width, X-Image-Height, Server-Timing",
        "content": {kind: {} for kind in ("image/png", "image/tiff", "image/webp", "image/jpeg")},
    },
    **ERRORS,
}


@dataclass(frozen=True)
class Marks:
    """The form fields that say where the subject is, without a trimap."""

    mask: OptionalMask = None
    points: Points = None
    width_px: WidthPx = None
    width_percent: WidthPercent = None
    threshold: Threshold = None

    @property
    def are_absent(self) -> bool:
        """Whether the subject is to be found."""
        return self.mask is None and self.points is None

    def check(self, trimap: UploadFile | None) -> None:
        """Refuse contradictory fields, as the command line of tools/predict.py does.

        Raises:
            RefusedError: the fields contradict each other.
        """
        if sum(source is not None for source in (trimap, self.mask, self.points)) > 1:
            raise RefusedError(422, "give one of trimap, mask and points")
        if self.width_px and self.width_percent:
            raise RefusedError(422, "give width_px or width_percent, not both")
        if not self.mask and (self.threshold or (self.width_px and self.points is None)):
            raise RefusedError(422, "threshold is for a mask, and width_px for a mask and for points")
        if trimap and self.width_percent:
            raise RefusedError(422, "a trimap takes no width_percent")

    def settings(self) -> dict[str, Any]:
        """Return the arguments of `Matter` but for the files."""
        return {
            "points": None if self.points is None else parse_points(self.points),
            "width_px": self.width_px,
            "width_percent": self.width_percent,
            "threshold": self.threshold,
        }


class Info(BaseModel):
    """What `GET /api/info` answers."""

    version: str
    model: str
    device: str
    limits: dict[str, int]
    waiting: int

    model_config = {
        "json_schema_extra": {
            "example": {
                "version": API_VERSION,
                "model": "models/vitmatte_s",
                "device": "cpu, float32",
                "limits": {"max_pixels": 64_000_000, "max_bytes": 200_000_000, "max_waiting": 16},
                "waiting": 0,
            }
        }
    }


def make_router(service: Service) -> APIRouter:
    """Make the routes of a service."""
    router = APIRouter()

    @router.post("/api/matte", response_class=Response, responses=RESULT, summary="Matte an image")
    async def matte(
        request: Request,
        image: Image,
        marks: Annotated[Marks, Depends()],
        trimap: OptionalTrimap = None,
        kind: Annotated[
            Literal["alpha", "rgba", "composite"] | None,
            Form(alias="as", description="Default: alpha with a trimap, composite with a background, otherwise rgba"),
        ] = None,
        background: Annotated[
            str | None, Form(max_length=100, description="Colour of a composite: teal, #20a040", examples=["#20a040"])
        ] = None,
        background_image: OptionalBackground = None,
        bits: Annotated[Literal["8", "16"], Form(description="Bits per value")] = "8",
        format: Annotated[Literal["png", "tif", "webp", "jpg"], Form(description="jpg is for composites")] = "png",
    ) -> Response:
        """Send a photograph, and at most one of trimap, mask and points. Without them the subject is found."""
        marks.check(trimap)
        has_background = background is not None or background_image is not None
        kind = kind or ("composite" if has_background else "alpha" if trimap else "rgba")
        if has_background != (kind == "composite") or (background is not None and background_image is not None):
            raise RefusedError(422, "a composite needs background or background_image, and nothing else takes one")
        return await service.respond(
            request,
            service.matter.matte,
            {"image": image, "trimap": trimap, "mask": marks.mask, "background": background_image},
            background=None if background is None else colour_of(background),
            auto=trimap is None and marks.are_absent,
            **marks.settings(),
            kind=kind,
            bits=int(bits),
            format=format,
        )

    @router.post("/api/trimap", response_class=Response, responses=RESULT, summary="Make a trimap")
    async def trimap(
        request: Request,
        image: Image,
        marks: Annotated[Marks, Depends()],
    ) -> Response:
        """Send a photograph, and maybe a mask or points; the answer is a PNG of 0, 128, 255 of its size."""
        marks.check(None)
        return await service.respond(
            request,
            service.matter.find_trimap,
            {"image": image, "mask": marks.mask},
            auto=marks.are_absent,
            **marks.settings(),
        )

    @router.get("/api/info", summary="Model, device and limits")
    async def info() -> Info:
        return Info(
            version=API_VERSION,
            model=service.model,
            device=service.device,
            limits={
                "max_pixels": service.matter.max_pixels,
                "max_bytes": service.body.max_bytes,
                "max_waiting": service.queue.max_waiting,
            },
            waiting=service.queue.num_waiting(),
        )

    @router.get("/health", summary="Whether the service takes requests", responses={503: ERRORS[503]})
    async def health() -> dict[str, str]:
        if service.queue.is_closed:
            raise RefusedError(503, ENDING)
        return {"status": "ok"}

    return router


def colour_of(name: str) -> Any:
    """Convert the name or code of a colour; a file or an address is none.

    Raises:
        RefusedError: no such colour.
    """
    colour = parse_colour(name)
    if colour is None:
        raise RefusedError(422, "background: no such colour; expected one such as teal or #20a040")
    return colour
