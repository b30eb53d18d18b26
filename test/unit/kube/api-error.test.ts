import { expect, test } from "vitest";
import { apiError, watchError } from "../../../agent/kube/api-error.ts";

const status = (code: number, reason: string, message: string, more = {}) =>
  JSON.stringify({ kind: "Status", code, reason, message, ...more });

test.each([
  { code: 404, body: status(404, "NotFound", 'pods "a" not found'), want: "NotFound", message: 'pods "a" not found' },
  { code: 409, body: status(409, "AlreadyExists", "there"), want: "AlreadyExists", message: "there" },
  { code: 409, body: status(409, "Conflict", "changed"), want: "Conflict", message: "changed" },
  { code: 410, body: status(410, "Expired", "too old"), want: "Gone", message: "too old" },
  { code: 410, body: "", want: "Gone", message: "GET /x: the API server answered 410" },
  { code: 422, body: status(422, "Invalid", "bad"), want: "Invalid", message: "bad" },
  { code: 400, body: status(400, "BadRequest", "bad"), want: "Invalid", message: "bad" },
  { code: 415, body: status(415, "UnsupportedMediaType", "no"), want: "Unimplemented", message: "no" },
  { code: 500, body: status(500, "InternalError", "oops"), want: "Internal", message: "oops" },
  { code: 504, body: status(504, "Timeout", "slow"), want: "DeadlineExceeded", message: "slow" },
  { code: 500, body: status(500, "ServerTimeout", "later"), want: "Unavailable", message: "later" },
  { code: 502, body: "<html>\n  <h1>Bad\tGateway</h1>", want: "Unavailable", message: "<html> <h1>Bad Gateway</h1>" },
  { code: 403, body: status(403, "Forbidden", ""), want: "Forbidden", message: "GET /x: the API server answered 403" },
])("$code $body is $want", ({ code, body, want, message }) => {
  expect(apiError("GET /x", code, body, undefined)).toMatchObject({
    code: want,
    message: body.includes('"message":""') ? expect.any(String) : message,
    status: code,
  });
});

test.each([
  { header: "3", body: "", want: 3_000 },
  { header: "0", body: "", want: 0 },
  { header: "Wed, 21 Oct 2026 07:28:00 GMT", body: "", want: undefined },
  { header: undefined, body: status(429, "TooManyRequests", "x", { details: { retryAfterSeconds: 2 } }), want: 2_000 },
  { header: undefined, body: status(429, "TooManyRequests", "x"), want: undefined },
])("Retry-After $header, $body: wait $want ms", ({ header, body, want }) => {
  expect(apiError("GET /x", 429, body, header).retryAfterMs).toBe(want);
});

test.each([
  [
    { kind: "Status", code: 410, reason: "Expired", message: "too old resource version" },
    "Gone",
    "too old resource version",
  ],
  [{ code: 500 }, "Internal", undefined],
  [null, "Internal", undefined],
])("watch error %j is %s", (object, code, message) => {
  const err = watchError("watch pods", object);
  expect(err.code).toBe(code);
  if (message !== undefined) expect(err.message).toBe(message);
});

test("the causes that the server tells by name are kept, whatever else is there", () => {
  const causes = [{ reason: "NamespaceTerminating", message: "m", field: "f" }, { message: "without" }, null, "odd"];
  const body = JSON.stringify({ kind: "Status", reason: "Forbidden", message: "no", details: { causes } });
  expect(apiError("POST /x", 403, body, undefined).causes).toEqual(["NamespaceTerminating"]);
  for (const details of [undefined, null, {}, { causes: null }, { causes: {} }]) {
    const other = JSON.stringify({ kind: "Status", reason: "Forbidden", message: "no", details });
    expect(apiError("POST /x", 403, other, undefined).causes).toEqual([]);
  }
  expect(apiError("POST /x", 502, "<html>", undefined).causes).toEqual([]);
});
