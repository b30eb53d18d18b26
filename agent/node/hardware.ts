/** What people ask first about a machine that misbehaves. Strings are "" where the machine does not tell. */
export interface Hardware {
  manufacturer: string;
  model: string;
  /** Hypervisor, "" on bare metal. */
  virtualization: string;
  cpu: string;
  physicalCores: number;
}

/**
 * Describes the machine for people, through systeminformation. It costs about 100 ms, some child processes and 12 MB of
 * memory that stay with the process: for people who debug, never for the ordinary daemon (facts.ts reads what that needs).
 */
export async function describeHardware(): Promise<Hardware> {
  const { system, cpu } = await import("systeminformation");
  const [machine, processor] = await Promise.all([system(), cpu()]);
  return {
    manufacturer: machine.manufacturer,
    model: machine.model,
    virtualization: machine.virtual ? (machine.virtualHost ?? "unknown hypervisor") : "",
    cpu: processor.brand,
    physicalCores: processor.physicalCores,
  };
}
