import type { Handler } from "../port.ts";
import { HttpError } from "../port.ts";
import { readBody, sendText } from "../respond.ts";

/** Serves /debug/flags/v. @param setVerbosity takes the number that `-v` takes */
export function createVerbosityHandler(setVerbosity: (verbosity: number) => void): Handler {
  return async ({ request, response }) => {
    if (request.method !== "PUT") throw new HttpError(406, "unsupported http method");
    const text = (await readBody(request)).trim();
    if (!/^[+-]?\d{1,9}$/.test(text)) {
      throw new HttpError(400, `the body must be a log verbosity such as 4, not ${JSON.stringify(text.slice(0, 40))}`);
    }
    setVerbosity(Number(text));
    sendText(response, 200, `successfully set klog.logging.verbosity to ${text}`);
  };
}
