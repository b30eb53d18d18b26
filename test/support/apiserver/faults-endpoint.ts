import type { Exchange } from "./exchange.ts";
import type { FaultAction, FaultMatch, Faults } from "./faults.ts";
import { isObject, type JsonObject, numberAt, stringAt } from "./json.ts";
import type { TokenAuthority } from "./tokens.ts";
import { badRequest, forbidden, methodNotAllowed, success } from "./status.ts";

const actionKinds = ["respond", "delay", "drop", "dropAnswer", "hang", "slowBody"];

/**
 * POST /test/faults, for tests that talk to a server in another process. The body says one thing to do:
 *
 *   {"inject": {"match": {"verb": "patch", "path": "/pods/"}, "action": {"kind": "respond", "code": 500}, "times": 3}}
 *   {"cutWatches": {"match": {"resource": "pods"}, "midLine": true}}   {"silenceWatches": {"match": {}, "on": true}}
 *   {"dropConnections": true}   {"halfOpenMs": 5000}   {"compact": true}   {"tokenSecondsMax": 15}   {"clear": true}
 *
 * Half-open lasts for a time, since nobody could ask for its end.
 */
export async function serveFaults(
  exchange: Exchange,
  { faults, tokens }: { faults: Faults; tokens: TokenAuthority },
): Promise<void> {
  if (exchange.method !== "POST") throw methodNotAllowed();
  if (!exchange.user.groups.includes("system:masters")) {
    throw forbidden({ group: "", plural: "faults" }, "", "only members of system:masters may break the server");
  }
  const body = await exchange.readObject();
  if (!isObject(body)) throw badRequest("POST /test/faults needs an object that says what to do");
  if (isObject(body["inject"])) {
    const { match, action } = body["inject"];
    const times = numberAt(body["inject"], "times");
    if (!isObject(action) || !actionKinds.includes(stringAt(action, "kind"))) {
      throw badRequest(`inject.action.kind is one of ${actionKinds.join(", ")}`);
    }
    faults.inject(matchOf(match), action as unknown as FaultAction, times);
  }
  if (isObject(body["cutWatches"])) {
    const { match, midLine } = body["cutWatches"];
    faults.cutWatches(matchOf(match), { midLine: midLine === true });
  }
  if (isObject(body["silenceWatches"])) {
    const { match, on } = body["silenceWatches"];
    faults.silenceWatches(matchOf(match), on !== false);
  }
  if (body["compact"] !== undefined) faults.compact(typeof body["compact"] === "string" ? body["compact"] : undefined);
  const tokenSecondsMax = numberAt(body, "tokenSecondsMax");
  if (tokenSecondsMax !== undefined) tokens.secondsMax = tokenSecondsMax;
  if (body["clear"] === true) {
    faults.clear();
    tokens.secondsMax = undefined;
  }
  await exchange.sendStatus(success());
  // What hits this connection too comes after the answer.
  const halfOpenMs = numberAt(body, "halfOpenMs");
  if (body["dropConnections"] === true) setImmediate(() => faults.dropConnections());
  if (halfOpenMs !== undefined) {
    setImmediate(() => faults.setHalfOpen(true));
    setTimeout(() => faults.setHalfOpen(false), halfOpenMs).unref();
  }
}

function matchOf(value: unknown): FaultMatch {
  const match: JsonObject = isObject(value) ? value : {};
  const result: FaultMatch = {};
  for (const field of ["method", "verb", "resource", "user"] as const) {
    const text = stringAt(match, field);
    if (text !== "") result[field] = text;
  }
  const path = stringAt(match, "path");
  if (path !== "") result.path = new RegExp(path);
  return result;
}
