package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"headrace/gateway/ledger/books"
)

// reportBills tells of bills, one a line.
func reportBills(out io.Writer, form string, bills []books.Bill) error {
	switch form {
	case "json":
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"bills": bills})
	case "csv":
		return billsCSV(out, bills)
	}
	_, err := io.WriteString(out, billsText(bills))
	return err
}

func billsCSV(out io.Writer, bills []books.Bill) error {
	w := csv.NewWriter(out)
	if err := w.Write([]string{"account", "from", "to", "as_of", "hosts", "billed_usd", "ledger_usd", "error_percent", "left_out_usd"}); err != nil {
		return err
	}
	for i := range bills {
		b := &bills[i]
		at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
		if err := w.Write([]string{
			unformed(b.Account), at(b.From), at(b.To), at(b.AsOf), strconv.Itoa(b.Hosts), exactly(b.Billed), exactly(b.Ledger), exactly(b.ErrorPercent()), exactly(b.LeftOut),
		}); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}

func billsText(bills []books.Bill) string {
	if len(bills) == 0 {
		return "No bill of this time has been read yet.\n"
	}
	t := plainTable()
	t.AppendHeader(table.Row{"account", "from", "to", "hosts", "billed", "ledger", "off by", "left out", "as of"})
	var columns []table.ColumnConfig
	for _, name := range []string{"hosts", "billed", "ledger", "off by", "left out"} {
		columns = append(columns, table.ColumnConfig{Name: name, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	for i := range bills {
		b := &bills[i]
		t.AppendRow(table.Row{
			shown(b.Account), hourText(b.From), hourText(b.To), b.Hosts, usdText(b.Billed), usdText(b.Ledger), fmt.Sprintf("%+.1f%%", b.ErrorPercent()), usdText(b.LeftOut), hourText(b.AsOf),
		})
	}
	return t.Render() + "\n\nLeft out is what was billed for hosts and times that the ledger has not watched. All times are UTC.\n"
}
