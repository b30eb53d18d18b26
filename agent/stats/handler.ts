import type { IncomingMessage } from "node:http";
import { messageOf } from "../lib/errors.ts";
import { type Handler, HttpError } from "../server/port.ts";
import { readBody } from "../server/respond.ts";
import type { Stats } from "./port.ts";

// A form with one field: anything longer is no form of this request.
export const formBytesMax = 4_096;

/** `/stats/summary`. Indented by one space as people who look at it by hand know it. */
export function summaryHandler(summary: Stats["summary"]): Handler {
  return async ({ request, response, query, signal }) => {
    const values = [...query.getAll("only_cpu_and_memory"), ...(await formValues(request))];
    const onlyCPUAndMemory = values.length === 1 && values[0] === "true";
    let body: string;
    try {
      body = JSON.stringify(await summary({ onlyCPUAndMemory, signal }), undefined, 1);
    } catch (err) {
      throw new HttpError(500, `Internal Error: ${messageOf(err)}`);
    }
    response.writeHead(200, { "content-type": "application/json" });
    response.end(body);
  };
}

async function formValues(request: IncomingMessage): Promise<string[]> {
  const isForm = request.headers["content-type"]?.startsWith("application/x-www-form-urlencoded") === true;
  if (request.method !== "POST" || !isForm) return [];
  const body = await readBody(request, { what: "form", bytesMax: formBytesMax });
  return new URLSearchParams(body).getAll("only_cpu_and_memory");
}
