import { readFile } from "node:fs/promises";

/** PID and start time: a reused PID gives another key. "" if there is no such process. */
export async function processKey(pid: number): Promise<string> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  if (stat === "") return "";
  // The command name may hold spaces and parentheses; field 22 counts from after it.
  const startTime = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  return `${pid} ${startTime}`;
}
