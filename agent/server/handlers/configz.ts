import type { Handler } from "../port.ts";
import { sendJson } from "../respond.ts";

/** Serves /configz. @param configz the configuration in use, without secrets */
export function createConfigzHandler(configz: () => unknown): Handler {
  return ({ response }) => {
    sendJson(response, configz(), { "X-Content-Type-Options": "nosniff" });
    return Promise.resolve();
  };
}
