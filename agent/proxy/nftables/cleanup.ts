import type { Logger } from "../../lib/log.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import { isAbsent } from "./exec.ts";
import { tableName } from "./fixed.ts";

const timeoutMs = 60_000;

/**
 * Deletes the proxy's table (and kube-proxy's, which is the same) in both families. Can be repeated; a machine without nft is clean.
 * @returns what could not be removed, one line each
 */
export async function cleanupNftables(commands: Commands, log: Logger, signal: AbortSignal): Promise<string[]> {
  const problems: string[] = [];
  for (const ip of ["ip", "ip6"]) {
    const result = await commands.run("nft", ["delete", "table", ip, tableName], { timeoutMs, signal });
    if (result.failure === "spawn" || (result.failure === "exit" && isAbsent(result.stderr))) continue;
    try {
      expectSuccess(result, `delete table ${ip} ${tableName}`);
      log.info({ table: `${ip} ${tableName}` }, "service rules removed");
    } catch (err) {
      problems.push((err as Error).message);
    }
  }
  return problems;
}
