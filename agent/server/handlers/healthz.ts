import { messageOf } from "../../lib/errors.ts";
import type { HealthCheck } from "../health.ts";
import type { Exchange, Handler } from "../port.ts";
import { plainError, sendText } from "../respond.ts";

/** Says that the process answers, and no more. */
export const pingCheck: HealthCheck = { name: "ping", check: async () => {} };

export interface HealthHandlers {
  /** All checks; `?verbose` lists them, `?exclude=<name>` leaves some out. */
  readonly healthz: Handler;
  /** Each check alone, by name. */
  readonly healthChecks: ReadonlyMap<string, Handler>;
}

/**
 * Makes the handlers of /healthz. The sum does not tell why a check failed, since whoever may ask for it need not know;
 * the check's own path does.
 *
 * @param onResult hears what each check of a sum said
 */
export function createHealthHandlers(
  checks: readonly HealthCheck[],
  onResult: (name: string, isHealthy: boolean) => void = () => {},
): HealthHandlers {
  const healthz: Handler = async ({ query, response }) => {
    const excluded = new Set(query.getAll("exclude"));
    const lines: string[] = [];
    let isHealthy = true;
    for (const check of checks) {
      if (excluded.delete(check.name)) {
        lines.push(`[+]${check.name} excluded: ok`);
        continue;
      }
      const isGood = (await reasonOf(check)) === undefined;
      onResult(check.name, isGood);
      lines.push(isGood ? `[+]${check.name} ok` : `[-]${check.name} failed: reason withheld`);
      isHealthy &&= isGood;
    }
    if (excluded.size > 0) {
      const names = [...excluded].map((name) => JSON.stringify(name)).join(", ");
      lines.push(`warn: some health checks cannot be excluded: no matches for ${names}`);
    }
    if (!isHealthy) throw plainError(500, [...lines, "healthz check failed"].join("\n"));
    sendHealthy(response, query.has("verbose") ? `${[...lines, "healthz check passed"].join("\n")}\n` : "ok");
  };
  const alone = (check: HealthCheck): Handler => {
    return async ({ response }) => {
      const reason = await reasonOf(check);
      if (reason !== undefined) throw plainError(500, `internal server error: ${reason}`);
      sendHealthy(response, "ok");
    };
  };
  return { healthz, healthChecks: new Map(checks.map((check) => [check.name, alone(check)])) };
}

async function reasonOf(check: HealthCheck): Promise<string | undefined> {
  try {
    await check.check();
    return undefined;
  } catch (err) {
    return messageOf(err);
  }
}

function sendHealthy(response: Exchange["response"], text: string): void {
  sendText(response, 200, text, { "X-Content-Type-Options": "nosniff" });
}
