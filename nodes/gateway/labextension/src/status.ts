/** What the kernel of the current notebook survives: an item of the status bar, and a panel behind it. */
import { INotebookTracker, NotebookActions } from '@jupyterlab/notebook';
import { Popup, showPopup } from '@jupyterlab/statusbar';
import { Poll } from '@lumino/polling';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

import { IStatus, isCallboard, requestStatus } from './kernel';

/** How often the kernel is asked while the page is visible. */
const POLL_EVERY_MS = 10_000;

/** The item. It is active only while the current notebook's kernel is Callboard's and answers. */
export class StatusItem extends Widget {
  constructor(tracker: INotebookTracker) {
    super({ node: document.createElement('button') });
    this.addClass('cb-StatusItem');
    this._tracker = tracker;
    this._poll = new Poll({
      factory: () => this._ask(),
      frequency: { interval: POLL_EVERY_MS, backoff: false },
      standby: 'when-hidden'
    });
    const refresh = () => void this._poll.refresh();
    tracker.currentChanged.connect((_, panel) => {
      panel?.sessionContext.kernelChanged.connect(refresh);
      refresh();
    });
    NotebookActions.executed.connect(refresh);
    this.node.addEventListener('click', () => this._open());
  }

  /** Emitted when the item appears or vanishes. */
  readonly activeChanged = new Signal<this, void>(this);

  /** Whether there is something to show. */
  get isActive(): boolean {
    return this._status !== null;
  }

  override dispose(): void {
    this._poll.dispose();
    super.dispose();
  }

  private async _ask(): Promise<void> {
    const current = () =>
      this._tracker.currentWidget?.sessionContext.session?.kernel ?? null;
    const kernel = current();
    const status =
      kernel && (await isCallboard(kernel)) ? await requestStatus(kernel) : null;
    if (kernel === current()) {
      this._show(status);
    }
  }

  private _show(status: IStatus | null): void {
    const wasActive = this.isActive;
    this._status = status;
    if (status) {
      this.node.textContent = summary(status);
      this.node.title = 'Callboard kernel: where it runs and what it survives';
    }
    if (wasActive !== this.isActive) {
      this.activeChanged.emit();
    }
  }

  private _open(): void {
    this._popup?.dispose();
    if (this._status) {
      const body = new Widget({ node: details(this._status) });
      body.addClass('cb-StatusPanel');
      this._popup = showPopup({ body, anchor: this, align: 'left' });
    }
  }

  private readonly _tracker: INotebookTracker;
  private readonly _poll: Poll;
  private _status: IStatus | null = null;
  private _popup: Popup | null = null;
}

/** A kernel's state in a few words, such as "survives 1 more loss · node-2". */
function summary(status: IStatus): string {
  const losses = status.losses_survivable;
  const verb = status.state_replicated === false ? 'outputs survive' : 'survives';
  const survives =
    losses === 0
      ? `${verb} no loss`
      : `${verb} ${losses} more ${losses === 1 ? 'loss' : 'losses'}`;
  return `${survives} · ${status.executor ?? status.phase}`;
}

/** All of a kernel's state, as a table. */
function details(status: IStatus): HTMLElement {
  const { gpus, last_failover: failover } = status;
  const rows: [string, string][] = [
    ['kernel', status.kernel],
    ['phase', status.phase],
    ['may be lost', `${status.losses_survivable} more`],
    ...status.replicas.map(({ replica, node, role }): [string, string] => [
      `replica ${replica}`,
      `${node}, ${role}`
    ])
  ];
  if (status.state_replicated === false) {
    rows.push(['variables', 'lost with the process: not replicated']);
  }
  if (gpus.held.length > 0) {
    rows.push(['GPUs', gpus.held.join(', ')]);
  }
  if (gpus.waiting !== null) {
    rows.push(['waits for GPUs', `${gpus.waiting}`]);
  }
  if (failover) {
    const { at_ms, from, to, cause } = failover;
    const words = [
      at_ms && new Date(at_ms).toLocaleTimeString(),
      from && `from ${from}`,
      to && `to ${to}`,
      cause
    ];
    rows.push(['last failover', words.filter(word => word).join(', ')]);
  }
  const table = document.createElement('table');
  for (const [name, value] of rows) {
    const row = table.insertRow();
    row.insertCell().textContent = name;
    row.insertCell().textContent = value;
  }
  return table;
}
