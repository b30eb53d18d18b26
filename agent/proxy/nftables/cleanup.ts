import type { Logger } from "../../lib/log.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import { isAbsent } from "./exec.ts";
import type { Family } from "../ip.ts";
import { tableName } from "./fixed.ts";
import { familyWords } from "./render.ts";

const timeoutMs = 60_000;

/**
 * Deletes the proxy's table (and kube-proxy's, which is the same) of these families. Can be repeated; a machine without nft is clean.
 * @returns what could not be removed, one line each
 */
export async function cleanupNftables(
  commands: Commands,
  log: Logger,
  signal: AbortSignal,
  families: readonly Family[] = ["IPv4", "IPv6"],
): Promise<string[]> {
  const problems: string[] = [];
  for (const family of families) {
    const { ip } = familyWords(family);
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
