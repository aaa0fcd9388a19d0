"""`/api/remove` as rembg's server has it, so that its plug-ins work with another port."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile

from tools.serving.api import RESULT
from tools.serving.errors import RefusedError
from tools.serving.service import Service

ALWAYS = "accepted; this server always mattes and always removes the background's colour"


def check_colour(text: str) -> str:
    """Check r,g,b[,a], each 0 to 255."""
    parts = text.split(",")
    if len(parts) not in (3, 4) or not all(part.strip().isdecimal() and int(part) <= 255 for part in parts):
        raise ValueError("expected r,g,b or r,g,b,a, each from 0 to 255")
    return text


class Parameters(BaseModel):
    """rembg's parameters, from the form or the query."""

    om: Annotated[bool, Field(description="Answer with the alpha alone")] = False
    bgc: Annotated[
        str | None, AfterValidator(check_colour), Field(description="Colour behind the subject: r,g,b or r,g,b,a")
    ] = None
    a: Annotated[bool, Field(description=f"Alpha matting: {ALWAYS}")] = False
    af: Annotated[int, Field(ge=0, le=255, description=ALWAYS)] = 240
    ab: Annotated[int, Field(ge=0, le=255, description=ALWAYS)] = 10
    ae: Annotated[int, Field(ge=0, description=ALWAYS)] = 10
    vm: Annotated[bool, Field(description=f"ViTMatte: {ALWAYS}")] = False
    dc: Annotated[bool, Field(description=f"Decontaminate: {ALWAYS}")] = False
    ppm: Annotated[bool, Field(description=f"Post-process the mask: {ALWAYS}")] = False
    model: Annotated[str | None, Field(description="Ignored")] = None
    extras: Annotated[str | None, Field(description="Ignored")] = None


IGNORED = ("model", "extras")


def _form_schema() -> dict[str, Any]:
    schema = Parameters.model_json_schema()
    schema["properties"] = {"file": {"type": "string", "format": "binary"}, **schema["properties"]}
    schema["required"] = ["file"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def make_rembg_router(service: Service) -> APIRouter:
    """Make the routes of a service that rembg's clients call."""
    router = APIRouter()

    @router.post(
        "/api/remove",
        response_class=Response,
        responses=RESULT,
        summary="Remove the background, as rembg's server does",
        openapi_extra=_form_schema(),
    )
    async def remove(request: Request) -> Response:
        """Send `file`. The answer is a PNG: the cut-out, the alpha alone (`om`), or the subject over `bgc`."""
        async with request.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RefusedError(422, "file: expected an uploaded image; this server fetches no URLs")
            given = {**request.query_params, **{name: value for name, value in form.items() if isinstance(value, str)}}
            try:
                chosen = Parameters.model_validate({name: value for name, value in given.items() if value != ""})
            except ValidationError as error:
                raise RefusedError(422, describe_faults(error.errors())) from error
            ignored = ", ".join(name for name in IGNORED if getattr(chosen, name) is not None)
            backdrop = None if chosen.bgc is None else (*map(int, chosen.bgc.split(",")), 255)[:4]
            return await service.respond(
                request,
                service.matter.matte,
                {"image": file},
                {"X-Ignored-Parameters": ignored} if ignored else {},
                backdrop=None if chosen.om else backdrop,
                auto=True,
                kind="alpha" if chosen.om else "rgba",
            )

    @router.get("/api/remove", include_in_schema=False)
    async def remove_url() -> None:
        raise RefusedError(400, "this server fetches no URLs: send the image by POST as file")

    return router


def describe_faults(faults: Any) -> str:
    """Join what pydantic found wrong, each with the name of its field."""
    return "; ".join(f"{'.'.join(map(str, fault['loc'][-1:]))}: {fault['msg']}" for fault in faults)
