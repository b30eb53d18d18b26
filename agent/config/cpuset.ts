/**
 * Parses a list of CPUs as the kernel writes it: `0-3,8`.
 * @returns CPU numbers, or undefined if `text` is no such list
 */
export function parseCPUSet(text: string): Set<number> | undefined {
  const cpus = new Set<number>();
  if (text.trim() === "") return cpus;
  for (const part of text.trim().split(",")) {
    const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(part);
    if (match === null) return undefined;
    const first = Number(match[1]);
    const last = Number(match[2] ?? match[1]);
    if (last < first) return undefined;
    for (let cpu = first; cpu <= last; cpu++) cpus.add(cpu);
  }
  return cpus;
}
